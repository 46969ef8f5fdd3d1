"""Looks at every video of a data set before a long run: what is missing, unreadable, too short, or in two splits."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from sttm import models
from sttm.config.settings import DataSettings, ModelSettings
from sttm.data.datasets.labels import directions
from sttm.data.datasets.video_set import SplitName, Video, VideoSet, read_split
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.transforms.processor_config import FAMILIES
from sttm.data.video.pictures import list_frames
from sttm.data.video.read import Sampling, VideoInfo
from sttm.errors import SttmError

Watch = Callable[[Iterable[Any], int], Iterable[Any]]
_MANY = 1024  # videos handed to the threads at once
_EDGE = 2**16  # bytes at either end of a file that tell it from others


@dataclass(frozen=True)
class Look:
    """What looking at one video came to."""

    video: Video
    info: VideoInfo | None = None
    error: str | None = None
    print: bytes = b""
    """The same for copies of one file, whatever their names."""
    remarks: tuple[str, ...] = ()
    """What decoding noticed, such as fewer frames than the file announces."""


def check(
    data: DataSettings,
    *,
    sampling: Sampling | None = None,
    decode: bool = False,
    threads: int = 8,
    watch: Watch = lambda looks, total: looks,
) -> dict[str, Any]:
    """Look at every video of every split: {"ok", "splits", "shared", "warnings"}.

    A split's record has its clips, classes, missing and unreadable videos, and the spread of durations, frames and
    rates. "shared" lists videos that stand in more than one split, known by their bytes and not their names.
    "ok" is whether none is missing or unreadable.

    Args:
        sampling: the clips that the model wants, to count the videos that are too short for them.
        decode: decode such a clip of each video as well, which finds damage behind the first frame.
        threads: videos looked at side by side; more than cores, for a disk that is far away.
        watch: is given the looks and how many there will be, and passes them on: a progress bar, say.

    Raises:
        SttmError: for settings or lists that cannot be read at all.
    """
    names = [name for name in get_args(SplitName) if getattr(data, name) is not None]
    if not names:
        raise SttmError("data names no list; give data.train, data.validation or data.test.")
    sets: dict[SplitName, VideoSet] = {name: read_split(data, name, tolerant=True) for name in names}
    todo = [video for videos in sets.values() for video in videos.videos]
    looks = iter(watch(_look_at_all(todo, (sampling or Sampling()) if decode else None, threads), len(todo)))
    found = {name: list(islice(looks, len(videos.videos))) for name, videos in sets.items()}
    for _ in looks:  # to its end, or a bar would stay
        pass
    splits = [_record(name, sets[name], found[name], sampling) for name in names]
    shared = _shared(found)
    warnings = [line for name in names for line in _warnings(data, name, sets[name], found[name])]
    if shared:
        first = " and ".join(f"{entry['path']} ({entry['split']})" for entry in shared[0])
        warnings.append(
            f"{len(shared)} of the videos stand in more than one split, so that results flatter: first {first}"
        )
    ok = not any(record["missing"] or record["unreadable"] for record in splits)
    return {"ok": ok, "splits": splits, "shared": shared, "warnings": warnings}


def clip_of(model: ModelSettings) -> Sampling | None:
    """The clips that a model wants, as far as it can be told without downloading it."""
    own: Sampling | None = None
    if model.start is not None and (model.start in models.BUNDLED or Path(model.start).is_dir()):
        own = Preprocess.from_folder(models.resolve(model.start)).sampling
    elif model.family in FAMILIES:
        family = FAMILIES[model.family]
        own = Sampling(int(model.config.get(family.num_frames_key) or family.num_frames))
    frames = model.frames or (own.num_frames if own else None)
    mode = model.sampling or (own.mode if own else "uniform")
    stride = model.stride or (own.stride if own and mode == "dense" else 1)
    return None if frames is None else Sampling(frames, mode, stride)


def _look_at_all(videos: Sequence[Video], sampling: Sampling | None, threads: int) -> Iterator[Look]:
    """Look at videos on threads (PyAV releases the interpreter), in order."""
    to_do = iter(videos)
    with ThreadPoolExecutor(threads, thread_name_prefix="sttm-check") as pool:
        while some := list(islice(to_do, _MANY)):
            yield from pool.map(partial(_look, sampling=sampling), some)


def _look(video: Video, sampling: Sampling | None) -> Look:
    try:
        info = video.probe()
        clips = [] if sampling is None else video.read(sampling)
        remarks = tuple(dict.fromkeys(warning for clip in clips for warning in clip.warnings))
        return Look(video, info, print=_print(video), remarks=remarks)
    except SttmError as error:
        return Look(video, error=str(error))
    except Exception as error:  # a defect of ours or of a codec: it is told, and costs this video only
        return Look(video, error=f"reading it failed unexpectedly: {type(error).__name__}: {error}")


def _print(video: Video) -> bytes:
    """Size, beginning and end of a video's bytes; of a folder of pictures, those of its first and where it starts."""
    offset, size, path, more = 0, None, Path(video.path), b""
    if video.part is not None:
        path, offset, size = Path(video.part.file), video.part.offset, video.part.size
    elif video.frames is not None:
        path, more = list_frames(video.path)[video.frames[0]], repr(video.frames).encode()
    size = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(min(_EDGE, size))
        file.seek(offset + max(size - _EDGE, 0))
        return blake2b(more + size.to_bytes(8) + head + file.read(min(_EDGE, size)), digest_size=16).digest()


def _record(name: str, videos: VideoSet, looks: list[Look], sampling: Sampling | None) -> dict[str, Any]:
    infos = [look.info for look in looks if look.info is not None]
    per_class = Counter(look.video.label for look in looks if look.info is not None and look.video.label is not None)
    seconds = [info.duration_seconds for info in infos if info.duration_seconds is not None]
    reach = sampling.reach if sampling is not None else 0
    return {
        "split": name,
        "layout": videos.layout,
        "clips": len(infos),
        "classes": len(videos.classes),
        "clips_per_class": _spread([per_class[number] for number in range(len(videos.classes))] if per_class else []),
        "missing": list(videos.missing),
        "unreadable": [{"path": look.video.path, "error": look.error} for look in looks if look.error is not None],
        "remarks": [{"path": look.video.path, "remark": remark} for look in looks for remark in look.remarks],
        "short": [info.path for info in infos if info.num_frames is not None and info.num_frames < reach],
        "hours": round(sum(seconds) / 3600, 4),
        "seconds": _spread([round(value, 3) for value in seconds]),
        "frames": _spread([info.num_frames for info in infos if info.num_frames is not None]),
        "fps": _spread([round(info.fps, 3) for info in infos if info.fps is not None]),
        "direction_sensitive": videos.direction_sensitive,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None


def _shared(found: dict[SplitName, list[Look]]) -> list[list[dict[str, str]]]:
    """Videos that stand in more than one split: where each copy is."""
    places: dict[bytes, dict[str, str]] = defaultdict(dict)
    for name, looks in found.items():
        for look in looks:
            if look.print:
                places[look.print].setdefault(name, look.video.path)
    several = [copies for copies in places.values() if len(copies) > 1]
    return [[{"split": split, "path": path} for split, path in copies.items()] for copies in several]


def _warnings(data: DataSettings, name: str, videos: VideoSet, looks: list[Look]) -> Iterator[str]:
    """What is wrong with a split besides single files."""
    lost = len(videos.missing) + sum(look.error is not None for look in looks)
    total = len(videos.missing) + len(looks)
    if lost > data.max_missing * total:
        share = f"{lost} of {total} videos of data.{name} are missing or unreadable"
        yield f"{share}, more than data.max_missing={data.max_missing:g} allows: training will not start"
    if name == "train":
        yield from _about_classes(data, videos, looks)
    labels: dict[bytes, set[int | None]] = defaultdict(set)
    for look in looks:
        if look.print:
            labels[look.print].add(look.video.label)
    copies = sum(bool(look.print) for look in looks) - len(labels)
    if copies:
        torn = sum(len(given) > 1 for given in labels.values())
        yield f"{copies} of the clips of data.{name} are copies of others in it; {torn} of those have several labels"


def _about_classes(data: DataSettings, videos: VideoSet, looks: list[Look]) -> Iterator[str]:
    counts = Counter(look.video.label for look in looks if look.error is None)
    empty = [label for number, label in enumerate(videos.classes) if not counts[number]]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        what = f"{len(empty)} of {len(videos.classes)} classes have no clip to train on ({shown})"
        yield f"{what}: training will not start unless data.without names them"
    if data.direction_sensitive is None and videos.direction_sensitive and not directions(videos.classes):
        yield "clips will not be mirrored, as nothing names the classes: give data.labels or data.direction_sensitive"
