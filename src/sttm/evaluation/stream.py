"""A long video, a pipe or a camera in sliding windows: labels for each as it comes, at constant memory.

Legend: T frames of the model's clip, C = 3 colours, H height, W width, K classes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttm import models
from sttm.data.live import FrameSource, check_source, is_live
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.sampling import Sampling, sample_indices
from sttm.data.windows import Sliding, WhenLate, Window, read_windows
from sttm.devices import device_of, dtype_of
from sttm.errors import SttmError
from sttm.evaluation.inference import NOT_FINITE, labels_of, scores
from sttm.evaluation.predict import bundled_notice

FPS, TIMEOUT = 8.0, 10.0
MAX_WINDOW = 4096


# Over 40 lines: most are the options and what they mean.
def stream(
    source: FrameSource,
    model: str | Path | None = None,
    compute: float | None = None,
    *,
    method: str = "sttm",
    window: int | None = None,
    stride: int | None = None,
    fps: float = FPS,
    when_late: WhenLate | None = None,
    timeout: float = TIMEOUT,
    segments: bool = False,
    top_k: int = 5,
    dtype: str = "fp32",
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """Classify a source in sliding windows, and yield one record for each as soon as its last frame is there.

        for record in sttm.stream("rtsp://camera/1", compute=0.62):
            print(record["start"], record["end"], record["predictions"][0]["label"])

    The model is loaded at the call, the source is read while the records are taken. A record is what `sttm stream`
    prints; see `stream_windows` and `join`.

    Args:
        source: a path, a URL (rtsp, udp, http, ...), "-" for standard input, a camera such as "0", or an open binary
            file.
        model: as in `sttm.predict`, like `compute`, `method`, `top_k`, `dtype` and `device`.
        window: sampled frames that a window spans; the model's own number if left out. Of more, it takes as many as it
            needs, evenly spread.
        stride: sampled frames from one window to the next; half a window if left out.
        fps: frames that are sampled in a second; all where the source has fewer.
        when_late: "skip" leaves windows out while the model is late, "wait" stops reading. Left out, cameras and
            network streams skip, files and pipes wait.
        timeout: seconds without a frame after which a source has failed to start, or has ended.
        segments: join windows of one label into segments.

    Raises:
        SttmError: for a model, compute, source or option that cannot be, or a source that gives no frame in time.
    """
    check_source(source)
    where, kind = device_of(device), dtype_of(dtype)
    network, preprocess = models.load_with_preprocess(models.DEFAULT if model is None else model)
    sliding = sliding_of(source, preprocess, window, stride, fps, when_late, timeout)
    notice = bundled_notice(labels_of(network)) if model is None else None
    if notice is not None:
        warnings.warn(notice, stacklevel=2)
    plan = models.bring_to_compute(network.to(where), compute, method)
    spent = 1.0 if plan is None else plan.compute
    records = stream_windows(
        source, network, preprocess, sliding, top_k=top_k, compute=spent, dtype=kind, notice=notice
    )
    return join(records) if segments else records


def sliding_of(
    source: FrameSource,
    preprocess: Preprocess,
    window: int | None = None,
    stride: int | None = None,
    fps: float = FPS,
    when_late: WhenLate | None = None,
    timeout: float = TIMEOUT,
) -> Sliding:
    """Return how a source is cut into windows, with what was left out filled in; see `stream`."""
    frames = preprocess.sampling.num_frames
    window = frames if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not frames <= window <= MAX_WINDOW:
        raise SttmError(
            f"window={window} is not possible: the model takes {frames} frames; give {frames} to {MAX_WINDOW}"
        )
    if stride < 1:
        raise SttmError(f"stride={stride} is not above 0; give the frames from one window to the next, such as 8")
    for name, value, most in (("fps", fps, 1000), ("timeout", timeout, 86_400)):
        if not (math.isfinite(value) and 0 < value <= most):
            raise SttmError(
                f"{name}={value:g} is not above 0 and at most {most}; give, say, {8 if name == 'fps' else 10}"
            )
    late = when_late or ("skip" if is_live(source) else "wait")
    return Sliding(window, stride, fps, late, timeout)


def stream_windows(
    source: FrameSource,
    model: nn.Module,
    preprocess: Preprocess,
    sliding: Sliding,
    *,
    top_k: int = 5,
    compute: float = 1.0,
    dtype: torch.dtype = torch.float32,
    notice: str | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> Generator[dict[str, Any]]:
    """Classify every window of a source, and yield one record for each, in order.

    A record is {"start", "end", "predictions": [{"label", "score"}...], "compute", "seconds"}, with "skipped" where
    windows before it were left out, "warnings" where the source was damaged, and "notice" where there is one; or with
    "error" in place of the predictions. Times are seconds from the source's first frame; "seconds" is the model's time.

    Args:
        note: called with a sentence for what is wrong with the source at its end.
    """
    labels, device = labels_of(model), next(model.parameters()).device
    (chosen,) = sample_indices(range(sliding.window), Sampling(preprocess.sampling.num_frames))

    def crop(frame_CHW: Tensor) -> Tensor:
        return preprocess.resize_and_crop(frame_CHW[None])[0, 0]

    with closing(read_windows(source, sliding, crop, note)) as windows:
        for window in windows:
            started = time.perf_counter()
            pixels_TCHW = preprocess.normalise(torch.stack([window.frames[index] for index in chosen]))
            (scores_K,) = scores(model, [pixels_TCHW[None].to(device)], "probabilities", 1, dtype)
            yield _record(window, scores_K, labels, top_k, compute, time.perf_counter() - started, notice)


def _record(
    window: Window, scores_K: Tensor, labels: list[str], top_k: int, compute: float, seconds: float, notice: str | None
) -> dict[str, Any]:
    """Return the record of one window."""
    record: dict[str, Any] = {"start": round(window.times[0], 3), "end": round(window.times[-1], 3)}
    if scores_K.isfinite().all():
        best = scores_K.topk(min(top_k, len(labels)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        record["predictions"] = [{"label": labels[index], "score": score} for index, score in pairs]
    else:
        record["error"] = NOT_FINITE
    record |= {"compute": compute, "seconds": round(seconds, 4)}
    extra = {"skipped": window.skipped, "warnings": list(window.remarks), "notice": notice}
    return record | {key: value for key, value in extra.items() if value}


def join(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Join successive windows of one label into segments {"start", "end", "label", "score", "windows"}.

    Where the label changes, the border lies half way between the middles of the two windows, or, if they do not
    overlap, where each ends. "score" is the mean score of the label. What the windows say of skipped windows and of
    damage is added up. A segment comes as soon as the next one begins; a window with an error ends one.
    """
    parts: list[Mapping[str, Any]] = []
    begin: float | None = None
    for record in records:
        last = parts[-1] if parts else None
        if last is not None and _label(last) != _label(record):
            border = (last["start"] + last["end"] + record["start"] + record["end"]) / 4
            apart = record["start"] > last["end"]
            yield _segment(parts, begin, last["end"] if apart else border)
            parts, begin = [], None if apart else border
        parts.append(record)
    if parts:
        yield _segment(parts, begin, parts[-1]["end"])


def _label(record: Mapping[str, Any]) -> str | None:
    return record["predictions"][0]["label"] if "predictions" in record else None


def _segment(parts: list[Mapping[str, Any]], begin: float | None, end: float) -> dict[str, Any]:
    """Return the segment of some windows with one label."""
    start = parts[0]["start"] if begin is None else begin
    segment: dict[str, Any] = {"start": round(start, 3), "end": round(end, 3), "label": _label(parts[0])}
    if segment["label"] is None:
        del segment["label"]
        segment["error"] = parts[0]["error"]
    else:
        segment["score"] = sum(part["predictions"][0]["score"] for part in parts) / len(parts)
    segment |= {"windows": len(parts), "compute": parts[0]["compute"]}
    extra = {
        "skipped": sum(part.get("skipped", 0) for part in parts),
        "warnings": [warning for part in parts for warning in part.get("warnings", ())],
        "notice": parts[0].get("notice"),
    }
    return segment | {key: value for key, value in extra.items() if value}
