"""Checks before a run starts, before it continues, and before each step; those that fail raise SttmError."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sttm.config import Settings
from sttm.data.datasets.video_set import VideoSet
from sttm.errors import SttmError, few

#: Settings that may change between a run and its continuation, as they do not change what is learned.
FREE = {"data.root", "data.labels", "data.workers", "data.cache_gib", "optimizer.micro_batch", "evaluation", "run"}
BOUND = {"run.seed", "run.precision"}
#: Folder in a run's, for what its lists said when it began.
LISTS = "lists"


def check_trackers(names: Sequence[str]) -> None:
    """Check that accelerate knows all `run.trackers` and that they are installed."""
    from accelerate.tracking import get_available_trackers

    available = [tracker.value for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise SttmError(
                f"run.trackers has {name}, which is unknown or not installed; available are {', '.join(available)}: "
                "install it, or set run.trackers=[]"
            )


def micro_batch(settings: Settings, world: int) -> int:
    """Return the clips that one process's model takes at once: as set, or its whole share of the batch."""
    return settings.optimizer.micro_batch or max(1, settings.optimizer.batch_size // world)


def lengths(settings: Settings, clips: int) -> tuple[int, int]:
    """Return the steps of the run, and the steps between evaluations."""
    epoch = clips * settings.augment.repeats / settings.optimizer.batch_size
    steps = settings.optimizer.steps or max(1, math.ceil((settings.optimizer.epochs or 0) * epoch))
    if settings.merging.warmup_steps >= steps:
        raise SttmError(f"merging.warmup_steps={settings.merging.warmup_steps} takes all {steps} steps; give fewer")
    return steps, settings.run.evaluate_every or max(1, math.ceil(epoch))


def check_same_run(settings: Settings, before: dict[str, Any], folder: Path) -> None:
    """Check that a folder's earlier run has the same settings, but for those that are free to change."""
    now, then = (dict(_leaves(values)) for values in (settings.model_dump(mode="json"), before))
    for name in sorted(now.keys() | then.keys()):
        free = any(name == key or name.startswith(f"{key}.") for key in FREE) and name not in BOUND
        if now.get(name) != then.get(name) and not free:
            raise SttmError(
                f"{folder} holds a run with {name}={then.get(name)} and this config says {now.get(name)}; "
                "choose another run.output, or delete that folder to start again"
            )


def check_same_classes(now: Sequence[str], before: Sequence[str], folder: Path) -> None:
    """Check that a folder's earlier run was trained on the same classes in the same order."""
    if list(now) != list(before):
        differences = (f"{a!r} now and {b!r} there" for a, b in zip(now, before, strict=False) if a != b)
        other = next(differences, "their number")
        wrong = f"{folder} holds a run on other classes ({other})"
        raise SttmError(f"{wrong}; use the same classes, or choose another run.output")


# --- Lists ----------------------------------------------------------------------------------------------------

#: Of a video: its path, the name of its class, and which pictures of a folder it is.
Entry = tuple[str, str | None, tuple[int, int | None] | None]


def entries(videos: VideoSet) -> list[Entry]:
    """Return what a list says of each of its videos."""
    names = [None if video.label is None else videos.classes[video.label] for video in videos.videos]
    return [(video.path, name, video.frames) for video, name in zip(videos.videos, names, strict=True)]


def fingerprint(videos: VideoSet) -> dict[str, Any]:
    """Return the number of videos in a list and a hash of their order, names and labels, wherever their root is."""
    lines = "\n".join(f"{name}\t{label}\t{frames}" for name, label, frames in _below_root(entries(videos)))
    return {"videos": len(videos.videos), "hash": hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()}


def write_lists(splits: Mapping[str, VideoSet], folder: Path) -> None:
    """Write what the lists of a run say into its folder, for `check_same_data` to say what differs."""
    (folder / LISTS).mkdir(exist_ok=True)
    for name, videos in splits.items():
        with (folder / LISTS / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(entry)}\n" for entry in entries(videos))


def check_same_data(splits: Mapping[str, VideoSet], before: Mapping[str, Any], folder: Path) -> None:
    """Check by their fingerprints that each split has the videos that a folder's earlier run had."""
    for name in sorted(splits.keys() | before.keys()):
        new, old = (fingerprint(splits[name]) if name in splits else None), before.get(name)
        if new != old:
            what = "one of the two only"
            if new and old:
                what = f"{old['videos']:,} videos then and {new['videos']:,} now"
                what += _difference(entries(splits[name]), _read_list(folder / LISTS / f"{name}.jsonl"))
            raise SttmError(
                f"data.{name}.list is not what the run in {folder} began with ({what}); give the same list and files, "
                "or choose another run.output"
            )


def _difference(now: list[Entry], then: list[Entry]) -> str:
    """Return in words how a list differs from what it was; nothing where that was not kept."""
    if not then:
        return ""
    if {path for path, *_ in now} & {path for path, *_ in then}:
        both_lists = _below_root([*now, *then])
        now, then = both_lists[: len(now)], both_lists[len(now) :]
    else:  # the videos have moved
        now, then = _below_root(now), _below_root(then)
    new, old = ({(path, frames): label for path, label, frames in some} for some in (now, then))
    both = new.keys() & old.keys()
    named = {
        "gone": [path for path, _ in old.keys() - both],
        "new": [path for path, _ in new.keys() - both],
        "another label": [f"{key[0]} ({old[key]} then, {new[key]} now)" for key in both if old[key] != new[key]],
    }
    parts = [f"; {what}: {few(names)}" for what, names in named.items() if names]
    return "".join(parts) or "; in another order, or listed more than once"


def _below_root(of: list[Entry]) -> list[Entry]:
    """Return entries whose paths start below the folder that they have in common."""
    common = os.path.commonprefix([path for path, *_ in of])  # noqa: RUF071 - of any texts
    root = len(common) - len(common.rpartition("/")[2])
    return [(path[root:], label, frames) for path, label, frames in of]


def _read_list(path: Path) -> list[Entry]:
    """Return what `write_lists` wrote, or nothing if that is not there any more."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(path, label, None if frames is None else tuple(frames)) for path, label, frames in lines]
    except (OSError, ValueError):
        return []


# --- Steps ----------------------------------------------------------------------------------------------------


def not_finite(loss: float, step: int, files: Sequence[str], checkpoint: Path | None) -> SttmError:
    """Return the error for a loss, or the gradient of a finite loss, that is not finite at a step, counted from 1."""
    return SttmError(
        f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite at step {step}, on "
        f"{', '.join(dict.fromkeys(files))}; the last good checkpoint is {checkpoint or 'none yet'}: look at these "
        "files, lower optimizer.lr or set optimizer.clip_norm, and run the command again"
    )


def check_readable(unreadable: Mapping[str, str], videos: int, max_missing: float) -> None:
    """Check that at most a share `max_missing` of the training videos is unreadable (path -> reason)."""
    if len(unreadable) > max_missing * videos:
        path, reason = next(iter(unreadable.items()))
        raise SttmError(
            f"{len(unreadable)} of {videos} training videos cannot be read, more than data.max_missing={max_missing:g} "
            f"allows ({path}: {reason}); see sttm data check"
        )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
