"""Video files in, labels out: decoding runs ahead of the model, and a file that fails stops no other.

Legend: V views of one clip, K classes, T frames, C colours, H height, W width.
"""

import glob
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttm.data.listing import VIDEO_SUFFIXES
from sttm.data.preprocess import Preprocess
from sttm.data.video import read
from sttm.errors import SttmError
from sttm.scoring import NOT_FINITE, labels_of, scores, videos_at_once


@dataclass(frozen=True)
class Source:
    """One thing to classify: the path as it will be reported, or the reason why there is nothing to read."""

    path: str
    error: str | None = None


@dataclass(frozen=True)
class _Loaded:
    """What reading one source came to: pixels, or an error."""

    path: str
    seconds: float
    pixels_VTCHW: Tensor | None = None
    frames_decoded: int = 0
    warnings: tuple[str, ...] = ()
    error: str | None = None


def find_videos(inputs: Iterable[str]) -> list[Source]:
    """Files as they are, folders searched through for video files, patterns expanded as a shell would.

    Nothing is lost: an input that yields no file becomes a Source with an error that says why.
    """
    return [source for name in inputs for source in _expand(name)]


def predict(
    sources: Iterable[Source],
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

    def load(source: Source) -> _Loaded:
        return _load(source, preprocess, views)

    loaded = _read_ahead(sources, load, readers=readers, ahead=at_once + readers)
    with closing(loaded):
        while batch := list(islice(loaded, at_once)):
            started = time.perf_counter()
            readable = [clip.pixels_VTCHW for clip in batch if clip.pixels_VTCHW is not None]
            found = iter(scores(model, readable, dtype=dtype, batch_size=batch_size))
            share = (time.perf_counter() - started) / max(1, len(readable))
            for clip in batch:
                if clip.error is not None:
                    yield {"path": clip.path, "error": clip.error}
                else:
                    seconds = clip.seconds + share
                    yield _record(clip, next(found), labels, top_k=top_k, compute=compute, seconds=seconds)


def _expand(name: str) -> Iterator[Source]:
    """The sources that one input of the command line stands for; always at least one."""
    try:
        is_folder, exists = Path(name).is_dir(), Path(name).exists()
    except OSError as error:  # a name that is too long, say
        yield Source(name, f"cannot be looked up: {error.strerror}")
        return
    if is_folder:
        yield from _in_folder(Path(name))
    elif exists or not any(sign in name for sign in "*?["):
        yield Source(name)  # if it is not there, the reader says so
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            yield Source(name, "this pattern matches no file; check the folder and the quotes around it")
        for match in map(Path, matches):
            yield from _in_folder(match) if match.is_dir() else [Source(str(match))]


def _in_folder(folder: Path) -> Iterator[Source]:
    """Every video file of a folder and the folders in it, by suffix, in the order of their names."""
    inside = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    found = sorted(path for path in inside if not path.name.startswith("."))
    if not found:
        yield Source(str(folder), "this folder holds no video file; name one that does, or the files themselves")
    yield from (Source(str(path)) for path in found)


def _read_ahead(
    sources: Iterable[Source], load: Callable[[Source], _Loaded], *, readers: int, ahead: int
) -> Generator[_Loaded]:
    """Load sources on threads (PyAV releases the interpreter), in order, at most `ahead` before the taker."""
    pool = ThreadPoolExecutor(readers, thread_name_prefix="sttm-read")
    to_do, under_way = iter(sources), deque[Future[_Loaded]]()
    try:
        under_way.extend(pool.submit(load, source) for source in islice(to_do, ahead))
        while under_way:
            loaded = under_way.popleft().result()
            under_way.extend(pool.submit(load, source) for source in islice(to_do, 1))
            yield loaded
    finally:  # reached as well when the taker stops early, at a Ctrl-C or a closed pipe
        pool.shutdown(cancel_futures=True)


def _load(source: Source, preprocess: Preprocess, views: tuple[int, int]) -> _Loaded:
    """Decode and preprocess one source; whatever goes wrong becomes its error."""
    started = time.perf_counter()
    if source.error is not None:
        return _Loaded(source.path, 0.0, error=source.error)
    try:
        clips = read(source.path, replace(preprocess.sampling, views=views[0]))
        pixels_VTCHW = torch.cat([preprocess(clip.frames_TCHW, crops=views[1]) for clip in clips])
    except SttmError as error:
        return _Loaded(source.path, 0.0, error=str(error))
    except Exception as error:  # a defect of ours or of a codec: it is told, and costs this file only
        return _Loaded(source.path, 0.0, error=f"reading it failed unexpectedly: {type(error).__name__}: {error}")
    return _Loaded(
        source.path,
        time.perf_counter() - started,
        pixels_VTCHW,
        frames_decoded=len({index for clip in clips for index in clip.indices}),
        warnings=tuple(dict.fromkeys(warning for clip in clips for warning in clip.warnings)),
    )


def _record(
    clip: _Loaded, scores_K: Tensor, labels: list[str], *, top_k: int, compute: float, seconds: float
) -> dict[str, Any]:
    """The record of one clip that went through the model."""
    if not scores_K.isfinite().all():
        return {"path": clip.path, "error": NOT_FINITE}
    best = scores_K.topk(min(top_k, len(labels)))
    record: dict[str, Any] = {
        "path": clip.path,
        "predictions": [
            {"label": labels[index], "score": score}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ],
        "compute": compute,
        "frames_decoded": clip.frames_decoded,
        "seconds": round(seconds, 6),
    }
    if clip.warnings:
        record["warnings"] = list(clip.warnings)
    return record
