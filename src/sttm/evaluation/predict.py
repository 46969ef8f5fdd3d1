"""Video files in, labels out: decoding runs ahead of the model, and a file that fails stops no other.

Legend: V views of one clip, K classes, T frames, C colours, H height, W width.
"""

import glob
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttm.data.loader import Sample, read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import VIDEO_SUFFIXES, Video
from sttm.evaluation.inference import NOT_FINITE, labels_of, scores, videos_at_once


def find_videos(inputs: Iterable[str]) -> list[Video]:
    """Files as they are, folders searched through for video files, patterns expanded as a shell would.

    Nothing is lost: an input that yields no file becomes a Video with an error that says why.
    """
    return [source for name in inputs for source in _expand(name)]


def predict(
    sources: Iterable[Video],
    model: nn.Module,
    preprocess: Preprocess,
    *,
    top_k: int = 5,
    views: tuple[int, int] = (1, 1),
    batch_size: int = 8,
    compute: float = 1.0,
    dtype: torch.dtype = torch.float32,
    readers: int = 2,
) -> Iterator[dict[str, Any]]:
    """Classify every source, and yield one record for each, in order, as soon as its batch is through.

    A record is {"path", "predictions": [{"label", "score"}...], "compute", "frames_decoded", "seconds"}, with
    "warnings" where the file was read with a reservation; or {"path", "error"}. "seconds" is the time to read
    the clip plus its share of the model's time on the batch.

    Args:
        model: maps pixels [B, T, C, H, W] to an output with `.logits` [B, K] and has `config.id2label`; it
            stays on the device that it is on.
        views: temporal views and spatial crops of each file, over which the scores are averaged.
        compute: what the model costs relative to its plain self; it is only reported.
        dtype: torch.float32, or the type for autocast.
        readers: threads that decode; little waits for the model, so a long list needs no more memory.

    Raises:
        SttmError: if a batch does not fit into the device's memory, or the model does not take such clips.
    """
    labels, at_once = labels_of(model), videos_at_once(batch_size, views)
    with closing(read_ahead(sources, preprocess, views, readers)) as readings:
        while batch := list(islice(readings, at_once)):
            started = time.perf_counter()
            readable = [reading.pixels_VTCHW for reading in batch if reading.pixels_VTCHW is not None]
            found = iter(scores(model, readable, dtype=dtype, batch_size=batch_size))
            share = (time.perf_counter() - started) / max(1, len(readable))
            for reading in batch:
                if reading.error is not None:
                    yield {"path": reading.path, "error": reading.error}
                else:
                    seconds = reading.seconds + share
                    yield _record(reading, next(found), labels, top_k=top_k, compute=compute, seconds=seconds)


def _expand(name: str) -> Iterator[Video]:
    """The sources that one input of the command line stands for; always at least one."""
    try:
        is_folder, exists = Path(name).is_dir(), Path(name).exists()
    except OSError as error:  # a name that is too long, say
        yield Video(name, error=f"cannot be looked up: {error.strerror}")
        return
    if is_folder:
        yield from _in_folder(Path(name))
    elif exists or not any(sign in name for sign in "*?["):
        yield Video(name)  # if it is not there, the reader says so
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            yield Video(name, error="this pattern matches no file; check the folder and the quotes around it")
        for match in map(Path, matches):
            yield from _in_folder(match) if match.is_dir() else [Video(str(match))]


def _in_folder(folder: Path) -> Iterator[Video]:
    """Every video file of a folder and the folders in it, by suffix, in the order of their names."""
    inside = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    found = sorted(path for path in inside if not path.name.startswith("."))
    if not found:
        yield Video(str(folder), error="this folder holds no video file; name one that does, or the files themselves")
    yield from (Video(str(path)) for path in found)


def _record(
    reading: Sample, scores_K: Tensor, labels: list[str], *, top_k: int, compute: float, seconds: float
) -> dict[str, Any]:
    """The record of one clip that went through the model."""
    if not scores_K.isfinite().all():
        return {"path": reading.path, "error": NOT_FINITE}
    best = scores_K.topk(min(top_k, len(labels)))
    record: dict[str, Any] = {
        "path": reading.path,
        "predictions": [
            {"label": labels[index], "score": score}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ],
        "compute": compute,
        "frames_decoded": reading.frames_decoded,
        "seconds": round(seconds, 6),
    }
    if reading.warnings:
        record["warnings"] = list(reading.warnings)
    return record
