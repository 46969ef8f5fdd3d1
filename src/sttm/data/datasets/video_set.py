"""From the settings of a data set to its videos: read the list, select annotations, number classes, find files."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sttm.config.sections import DataSettings, SplitSettings
from sttm.data.datasets.annotations import SPLITS, Annotation
from sttm.data.datasets.files import FileFinder
from sttm.data.datasets.formats import read_annotations
from sttm.data.datasets.labels import Classes, directional, read_labels
from sttm.data.video.video import Video, skipped_files
from sttm.errors import SttmError

__all__ = ["SplitName", "Video", "VideoSet", "read_split"]

SplitName = Literal["train", "validation", "test"]
_MAX_CLASSES = 10**6


@dataclass(frozen=True)
class VideoSet:
    """The videos of one split, and what their labels mean."""

    videos: tuple[Video, ...]
    """Those whose file is there, in the order of the list."""
    classes: tuple[str, ...]
    """Names by index."""
    missing: tuple[str, ...]
    """Paths that are listed but not there."""
    format: str
    """The annotation format that the list was read in."""
    direction_sensitive: bool
    """Whether mirroring a clip would change the meaning of some class."""
    skipped: tuple[str, ...] = ()
    """Files that the scan of a folder left out; `read_split` warns of them."""


def read_split(data: DataSettings, name: SplitName, *, tolerant: bool = False) -> VideoSet:
    """Read one split: every selected annotation of its list, and whether its file is there.

    The classes are those of `data.labels`, or else those of the first list that names any, less `data.without`;
    they are the same for all splits. Where only numbers and no names are known, no clip is known to be safe to
    mirror: the set then counts as direction-sensitive unless `data.direction_sensitive` says otherwise. With
    `data.unlabelled` the training split has no labels and no classes. A scan of a folder that skips files warns.

    Args:
        tolerant: also accept a list with many missing videos or classes without clips, as a check of the data does.

    Raises:
        SttmError: for a list that is missing, unknown, broken or empty, a label that is no class, a class without
            clips to train on, or more missing videos than `data.max_missing`.
    """
    split = _split(data, name)
    selected = _select(split, name)
    unlabelled = data.unlabelled and name == "train"
    every = Classes.of((), str(split.list)) if unlabelled else _all_classes(data, {name: selected})
    remaining, classes = _without(every, data.without)
    new_index = {index: number for number, index in enumerate(remaining)}
    finder = FileFinder(selected.root, bounded=split.root is not None)
    videos, missing = [], []
    for annotation in selected.annotations:
        index = None if unlabelled else _class_index(annotation, every, needed=name != "test")
        if index is not None and index not in new_index:
            continue
        found = finder.find(annotation, None if index is None else new_index[index])
        if isinstance(found, str):
            missing.append(found)
        else:
            videos.append(found)
    if not videos and not missing:
        raise SttmError(f"data.without leaves no video of data.{name}.list={split.list}; leave fewer classes out")
    if not tolerant:
        _refuse_missing(data, name, missing, len(videos))
        if name == "train":
            _refuse_empty_classes(videos, classes, every.origin)
    sensitive = data.direction_sensitive
    if sensitive is None:
        sensitive = all(name.isdecimal() for name in classes) or bool(directional(classes))
    _warn_of_numbers(selected.annotations, every, split.list)
    if selected.skipped:
        warnings.warn(skipped_files(str(selected.root), selected.skipped), stacklevel=2)
    return VideoSet(tuple(videos), classes, tuple(missing), selected.format, sensitive, selected.skipped)


@dataclass(frozen=True)
class _Selected:
    """The annotations of a list that belong to a split."""

    annotations: list[Annotation]
    classes: tuple[str, ...] | None
    format: str
    root: Path
    skipped: tuple[str, ...]


def _split(data: DataSettings, name: SplitName) -> SplitSettings:
    split: SplitSettings | None = getattr(data, name)
    if split is None:
        raise SttmError(f"data.{name} is not given; name its list: data.{name}.list")
    root = split.root or data.root
    return split.model_copy(update={"root": root})


def _select(split: SplitSettings, name: SplitName) -> _Selected:
    """Read a list, and keep the annotations of this split whose columns have what `where` asks for."""
    setting = f"data.{name}"
    listed, format_ = read_annotations(split.list, split.format, setting)
    annotations = listed.annotations
    wanted = _wanted_columns(split, name, annotations)
    for column, values in wanted.items():
        columns = tuple(annotations[0].columns)
        if column not in columns:
            found = f"has the columns {', '.join(columns)}" if columns else f"has no columns (its format is {format_})"
            raise SttmError(f"{split.list} {found} but not {column!r}; correct {setting}.where or {setting}.split")
        present = sorted({annotation.columns[column] for annotation in annotations})
        annotations = [annotation for annotation in annotations if annotation.columns[column] in values]
        if not annotations:
            missing = f"no line with {column}={' or '.join(values)}"
            raise SttmError(f"{split.list} has {missing}; there are {', '.join(present[:10])}: correct {setting}")
    own = split.list if split.list.is_dir() else split.list.parent
    return _Selected(annotations, listed.classes, format_, listed.root or split.root or own, listed.skipped)


def _wanted_columns(split: SplitSettings, name: SplitName, annotations: list[Annotation]) -> dict[str, tuple[str, ...]]:
    """Return the values that an annotation must have in each column, also in a column `split` with several values."""
    wanted = {column: (value,) if isinstance(value, str) else value for column, value in split.where.items()}
    if split.split is not None:
        wanted["split"] = (split.split,)
    elif "split" not in wanted:
        present = sorted({a.columns["split"] for a in annotations if "split" in a.columns})
        if len(present) > 1:
            wanted["split"] = tuple(value for value in present if value.lower() in SPLITS[name])
            if not wanted["split"]:
                raise SttmError(f"{split.list} has the splits {', '.join(present)}; choose one with data.{name}.split")
    return wanted


def _all_classes(data: DataSettings, selected: dict[SplitName, _Selected]) -> Classes:
    """Return the classes before any is left out."""
    if data.labels is not None:
        return read_labels(data.labels)
    for name in get_args(SplitName):
        if getattr(data, name) is not None:
            split = _split(data, name)
            names = _names(selected[name] if name in selected else _select(split, name))
            if names:
                return Classes.of(names, str(split.list))
    if data.train is None and data.validation is None and data.test is not None:
        return Classes.of((), str(data.test.list))  # a test list without labels, for predictions alone
    raise SttmError("no list names the classes; give data.labels, a file such as labels.json or classInd.txt")


def _names(selected: _Selected) -> tuple[str, ...]:
    """Return the classes that a list names itself; where it has numbers, all up to the greatest."""
    if selected.classes is not None:
        return selected.classes
    labels = {str(annotation.label) for annotation in selected.annotations if annotation.label is not None}
    if not all(label.isascii() and label.isdecimal() for label in labels):
        return tuple(sorted(labels))
    most = max(map(int, labels), default=-1)
    if most > _MAX_CLASSES:
        raise SttmError(f"label {most} is no class's number; check the format of the list, read as {selected.format}")
    return tuple(map(str, range(most + 1)))


def _without(every: Classes, names: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of the classes that stay, and their names."""
    dropped = set()
    for name in names:
        index = every.index(name)
        if index is None:
            raise SttmError(f"data.without has {name!r}, no class of {every.origin}; {every.nearest(name)}")
        dropped.add(index)
    remaining = [index for index in range(len(every.names)) if index not in dropped]
    if every.names and not remaining:
        raise SttmError(f"data.without leaves none of the {len(every.names)} classes of {every.origin}; keep some")
    return remaining, tuple(every.names[index] for index in remaining)


def _class_index(annotation: Annotation, classes: Classes, *, needed: bool) -> int | None:
    if annotation.label is None:
        if needed:
            raise SttmError(f"{annotation.where} has no label; only a list of test videos may go without")
        return None
    index = classes.index(annotation.label)
    if index is None:
        known = f"none of the {len(classes.names)} classes of {classes.origin}"
        advice = classes.nearest(annotation.label)
        raise SttmError(f"{annotation.where} has the label {annotation.label!r}, {known}; {advice}")
    return index


def _warn_of_numbers(annotations: list[Annotation], classes: Classes, listed: Path) -> None:
    """Warn where the numbers of a list, which count from 0, may as well be those of a file that does not."""
    labels = {str(annotation.label) for annotation in annotations if annotation.label is not None}
    if not classes.first or not labels or not all(label.isdecimal() for label in labels):
        return
    origin, named = classes.origin, labels & {*classes.names}
    if any(classes.names.index(label) != int(label) - classes.first for label in named):
        what = f"the labels of {listed} are read as names of the classes of {origin}, not as its numbers, counting from"
        warnings.warn(
            f"{what} {classes.first}: give classes names that are no numbers where that is wrong", stacklevel=3
        )
    elif labels - named and "0" not in labels - named:
        what = f"the numbers of {listed} are read as counting from 0, those of {origin} from {classes.first}"
        warnings.warn(f"{what}, and no video has 0: give the names of classes where that is wrong", stacklevel=3)


def _refuse_missing(data: DataSettings, name: SplitName, missing: list[str], num_found: int) -> None:
    total = len(missing) + num_found
    if len(missing) > data.max_missing * total:
        share = f"{len(missing)} of {total} videos of data.{name} are missing ({len(missing) / total:.1%})"
        limit = f"more than data.max_missing={data.max_missing:g} allows"
        raise SttmError(f"{share}, {limit}; the first is {missing[0]}: set data.root (--root) to where the videos are")


def _refuse_empty_classes(videos: list[Video], classes: tuple[str, ...], origin: str) -> None:
    counts = Counter(video.label for video in videos)
    empty = [name for number, name in enumerate(classes) if not counts[number]]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        what = f"no clip to train on for {shown} of the {len(classes)} classes of {origin}"
        raise SttmError(f"there is {what}; correct data.train.list, or leave them out with data.without")
