"""Check every video of a data set before a long run: what is missing, unreadable, too short, or in two splits."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from sttm.config.sections import DataSettings
from sttm.data.datasets.labels import directional
from sttm.data.datasets.video_set import SplitName, Video, VideoSet, read_split
from sttm.data.threads import map_ahead
from sttm.data.video.frame_folder import list_frames
from sttm.data.video.read import Sampling, VideoInfo
from sttm.data.video.video import attempt
from sttm.errors import SttmError

_AHEAD = 1024  # videos handed to the threads at once
_EDGE_BYTES = 2**16  # at either end of a file, which distinguish it from others


@dataclass(frozen=True)
class CheckedVideo:
    """What checking one video found."""

    video: Video
    info: VideoInfo | None = None
    error: str | None = None
    fingerprint: bytes = b""
    """The same for copies of one file, whatever their names."""
    remarks: tuple[str, ...] = ()
    """What decoding found, such as fewer frames than the file announces."""


def check(
    data: DataSettings,
    *,
    sampling: Sampling | None = None,
    decode: bool = False,
    threads: int = 8,
    advance: Callable[[int, int], None] = lambda videos, total: None,
) -> dict[str, Any]:
    """Check every video of every split; return {"ok", "splits", "shared", "warnings"}.

    A split's record has its clips, classes, missing and unreadable videos, and the range of durations, frames and
    rates. "shared" lists videos that are in more than one split, recognised by their bytes and not their names.
    "ok" is whether none is missing or unreadable.

    Args:
        sampling: the clips that the model wants, to count the videos that are too short for them.
        decode: also decode such a clip of each video, which finds damage behind the first frame.
        threads: videos checked at the same time; give more than cores for a network disk.
        advance: called after each video with 1 and the number of all videos.

    Raises:
        SttmError: for settings or lists that cannot be read at all.
    """
    names = [name for name in get_args(SplitName) if getattr(data, name) is not None]
    if not names:
        raise SttmError("data names no list; give data.train, data.validation or data.test")
    sets: dict[SplitName, VideoSet] = {name: read_split(data, name, tolerant=True) for name in names}
    total, clips = sum(len(videos.videos) for videos in sets.values()), (sampling or Sampling()) if decode else None
    each = partial(_check_all, sampling=clips, threads=threads, advance=lambda: advance(1, total))
    found = {name: list(each(videos.videos)) for name, videos in sets.items()}
    splits = [_record(name, sets[name], found[name], sampling) for name in names]
    shared = _shared(found)
    warnings = [line for name in names for line in _warnings(data, name, sets[name], found[name])]
    if shared:
        first = " and ".join(f"{entry['path']} ({entry['split']})" for entry in shared[0])
        many = f"{len(shared)} of the videos are in more than one split"
        warnings.append(f"{many}, so that accuracy is overestimated: first {first}")
    ok = not any(record["missing"] or record["unreadable"] for record in splits)
    return {"ok": ok, "splits": splits, "shared": shared, "warnings": warnings}


def _check_all(
    videos: Sequence[Video], sampling: Sampling | None, threads: int, advance: Callable[[], None]
) -> Iterator[CheckedVideo]:
    """Check videos on threads (PyAV releases the GIL), in order."""
    found = map_ahead(partial(_check_one, sampling=sampling), videos, threads, ahead=_AHEAD)
    with closing(found):
        for checked in found:
            yield checked
            advance()


def _check_one(video: Video, sampling: Sampling | None) -> CheckedVideo:
    def look() -> CheckedVideo:
        info = video.probe()
        clips = [] if sampling is None else video.read(sampling, prepare=_one_pixel)
        remarks = tuple(dict.fromkeys(warning for clip in clips for warning in clip.warnings))
        return CheckedVideo(video, info, fingerprint=_fingerprint(video), remarks=remarks)

    checked, error = attempt(look)
    return checked or CheckedVideo(video, error=error)


def _one_pixel(frame_CHW: Tensor) -> Tensor:
    """Return what is kept of a frame that only has to be decoded."""
    return frame_CHW[None, :, :1, :1].clone()


def _fingerprint(video: Video) -> bytes:
    """Hash size, beginning and end of a video's bytes; of a folder of pictures, of its first, and its range."""
    offset, size, path, more = 0, None, Path(video.path), b""
    if video.member is not None:
        path, offset, size = Path(video.member.file), video.member.offset, video.member.size
    elif video.frames is not None:
        path, more = list_frames(video.path)[video.frames[0]], repr(video.frames).encode()
    size = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(min(_EDGE_BYTES, size))
        file.seek(offset + max(size - _EDGE_BYTES, 0))
        return blake2b(more + size.to_bytes(8) + head + file.read(min(_EDGE_BYTES, size)), digest_size=16).digest()


def _record(name: str, videos: VideoSet, checked: list[CheckedVideo], sampling: Sampling | None) -> dict[str, Any]:
    infos = [item.info for item in checked if item.info is not None]
    per_class = Counter(item.video.label for item in checked if item.info is not None and item.video.label is not None)
    seconds = [info.duration_seconds for info in infos if info.duration_seconds is not None]
    reach = sampling.reach if sampling is not None else 0
    return {
        "split": name,
        "format": videos.format,
        "clips": len(infos),
        "classes": len(videos.classes),
        "clips_per_class": _range([per_class[number] for number in range(len(videos.classes))] if per_class else []),
        "missing": list(videos.missing),
        "skipped": list(videos.skipped),
        "unreadable": [{"path": item.video.path, "error": item.error} for item in checked if item.error is not None],
        "remarks": [{"path": item.video.path, "remark": remark} for item in checked for remark in item.remarks],
        "short": [info.path for info in infos if info.num_frames is not None and info.num_frames < reach],
        "hours": round(sum(seconds) / 3600, 4),
        "seconds": _range([round(value, 3) for value in seconds]),
        "frames": _range([info.num_frames for info in infos if info.num_frames is not None]),
        "fps": _range([round(info.fps, 3) for info in infos if info.fps is not None]),
        "direction_sensitive": videos.direction_sensitive,
    }


def _range(values: Sequence[float]) -> dict[str, float] | None:
    """Return least, median and greatest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None


def _shared(found: dict[SplitName, list[CheckedVideo]]) -> list[list[dict[str, str]]]:
    """Return where each copy is of the videos that are in more than one split."""
    copies_by_hash: dict[bytes, dict[str, str]] = defaultdict(dict)
    for name, checked in found.items():
        for item in checked:
            if item.fingerprint:
                copies_by_hash[item.fingerprint].setdefault(name, item.video.path)
    several = [copies for copies in copies_by_hash.values() if len(copies) > 1]
    return [[{"split": split, "path": path} for split, path in copies.items()] for copies in several]


def _warnings(data: DataSettings, name: str, videos: VideoSet, checked: list[CheckedVideo]) -> Iterator[str]:
    """Yield what is wrong with a split besides single files."""
    lost = len(videos.missing) + sum(item.error is not None for item in checked)
    total = len(videos.missing) + len(checked)
    if lost > data.max_missing * total:
        share = f"{lost} of {total} videos of data.{name} are missing or unreadable"
        yield f"{share}, more than data.max_missing={data.max_missing:g} allows: training will not start"
    if name == "train":
        yield from _class_warnings(data, videos, checked)
    labels: dict[bytes, set[int | None]] = defaultdict(set)
    for item in checked:
        if item.fingerprint:
            labels[item.fingerprint].add(item.video.label)
    copies = sum(bool(item.fingerprint) for item in checked) - len(labels)
    if copies:
        contradictory = sum(len(given) > 1 for given in labels.values())
        what = f"{copies} of the clips of data.{name} are copies of others in it"
        yield f"{what}; {contradictory} of those have several labels"


def _class_warnings(data: DataSettings, videos: VideoSet, checked: list[CheckedVideo]) -> Iterator[str]:
    counts = Counter(item.video.label for item in checked if item.error is None)
    empty = [label for number, label in enumerate(videos.classes) if not counts[number]]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        what = f"{len(empty)} of {len(videos.classes)} classes have no clip to train on ({shown})"
        yield f"{what}: training will not start unless data.without names them"
    if data.direction_sensitive is None and videos.direction_sensitive and not directional(videos.classes):
        yield "clips will not be mirrored, as nothing names the classes: give data.labels or data.direction_sensitive"
