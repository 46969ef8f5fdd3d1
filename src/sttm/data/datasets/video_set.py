"""From the settings of a data set to its videos: read the list, choose lines, number the classes, find the files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sttm.config.settings import DataSettings, SplitSettings
from sttm.data.datasets.formats import LAYOUTS, multi_label, read_listing
from sttm.data.datasets.labels import Classes, directions, read_labels
from sttm.data.datasets.lists import SPLITS, VIDEO_SUFFIXES, Line, Part
from sttm.data.video import read as video
from sttm.data.video.pictures import probe_frames, read_frames
from sttm.errors import SttmError

if TYPE_CHECKING:
    from sttm.data.video.cache import Kept

__all__ = ["LAYOUTS", "SplitName", "Video", "VideoSet", "read_split"]

SplitName = Literal["train", "validation", "test"]
_MOST_CLASSES = 10**6


@dataclass(frozen=True, slots=True)
class Video:
    """One video of a list, whose file is there."""

    path: str
    """As it is reported: a file, a folder of frames, or shard.tar/key."""
    label: int | None
    """None where a list of test videos does not tell."""
    frames: tuple[int, int | None] | None = None
    """Of a folder of frames: how many to skip, and how many there are, all that follow if unknown."""
    part: Part | None = None
    """Where in a shard it lies."""

    def read(
        self, sampling: video.Sampling, draw: np.random.Generator | None = None, *, kept: Kept | None = None
    ) -> list[video.Clip]:
        """Decode one Clip a temporal view; see `video.read`.

        Raises:
            SttmError: if the video is gone or cannot be read.
        """
        if self.frames is not None:
            skip, count = self.frames
            return read_frames(self.path, sampling, skip=skip, count=count, draw=draw)
        source = self.path if self.part is None else self.part.open()
        return video.read(source, sampling, name=self.path, draw=draw, kept=kept)

    def probe(self) -> video.VideoInfo:
        """Look at the header and the first frame.

        Raises:
            SttmError: if the video is gone or cannot be read.
        """
        if self.frames is not None:
            return probe_frames(self.path, skip=self.frames[0], count=self.frames[1])
        return video.probe(self.path if self.part is None else self.part.open(), name=self.path)


@dataclass(frozen=True)
class VideoSet:
    """The videos of one split, and what their labels mean."""

    videos: tuple[Video, ...]
    """Those whose file is there, in the order of the list."""
    classes: tuple[str, ...]
    """Names by number."""
    missing: tuple[str, ...]
    """Paths that are listed but not there."""
    layout: str
    direction_sensitive: bool
    """Whether a mirror would change what some class says."""


def read_split(data: DataSettings, name: SplitName, *, tolerant: bool = False) -> VideoSet:
    """Read one split: every line of its list that counts, and whether its file is there.

    The classes are those of `data.labels`, or else those of the first list that names any, less `data.without`;
    they are the same for all splits. Where nothing tells the names, only numbers, no clip can be known to be safe
    to mirror: then the set counts as direction-sensitive unless `data.direction_sensitive` says otherwise.

    Args:
        tolerant: take a list with many missing videos or classes without clips too, as a check of the data does.

    Raises:
        SttmError: for a list that is missing, unknown, broken or empty, a label that is no class, a class without
            clips to train on, or more missing videos than `data.max_missing`.
    """
    split = _split(data, name)
    chosen = _choose(split, name)
    every = _all_classes(data, {name: chosen})
    kept, classes = _without(every, data.without)
    new_places = {place: number for number, place in enumerate(kept)}
    selector = _Finder(chosen.root)
    videos, missing = [], []
    for line in chosen.lines:
        place = _place(line, every, needed=name != "test")
        if place is not None and place not in new_places:
            continue
        found = selector.find(line, None if place is None else new_places[place])
        if isinstance(found, str):
            missing.append(found)
        else:
            videos.append(found)
    if not videos and not missing:
        raise SttmError(f"data.without leaves no line of data.{name}.list={split.list}; leave fewer classes out.")
    if not tolerant:
        _refuse_missing(data, name, missing, len(videos))
        if name == "train":
            _refuse_empty_classes(videos, classes, every.source)
    told = data.direction_sensitive
    evidence = all(name.isdecimal() for name in classes) or bool(directions(classes))
    return VideoSet(tuple(videos), classes, tuple(missing), chosen.layout, evidence if told is None else told)


@dataclass(frozen=True)
class _Chosen:
    """The lines of a list that count."""

    lines: list[Line]
    classes: tuple[str, ...] | None
    layout: str
    root: Path


def _split(data: DataSettings, name: SplitName) -> SplitSettings:
    split: SplitSettings | None = getattr(data, name)
    if split is None:
        raise SttmError(f"data.{name} is not given; name its list: data.{name}.list.")
    root = split.root or data.root
    return split.model_copy(update={"root": root})


def _choose(split: SplitSettings, name: SplitName) -> _Chosen:
    """Read a list, and keep the lines of this split that have what `where` asks for."""
    setting = f"data.{name}"
    listing, layout = read_listing(split.list, split.layout, setting)
    lines = listing.lines
    wanted = {column: (value,) if isinstance(value, str) else value for column, value in split.where.items()}
    if split.split is not None:
        wanted["split"] = (split.split,)
    elif "split" not in wanted:
        present = sorted({line.columns["split"] for line in lines if "split" in line.columns})
        if len(present) > 1:
            wanted["split"] = tuple(value for value in present if value.lower() in SPLITS[name])
            if not wanted["split"]:
                raise SttmError(f"{split.list} has the splits {', '.join(present)}; choose one with {setting}.split.")
    for column, values in wanted.items():
        columns = tuple(lines[0].columns)
        if column not in columns:
            found = f"has the columns {', '.join(columns)}" if columns else f"has no columns (its layout is {layout})"
            raise SttmError(f"{split.list} {found} but not {column!r}; mend {setting}.where or {setting}.split.")
        present = sorted({line.columns[column] for line in lines})
        lines = [line for line in lines if line.columns[column] in values]
        if not lines:
            told = f"no line with {column}={' or '.join(values)}"
            raise SttmError(f"{split.list} has {told}; there are {', '.join(present[:10])}: mend {setting}.")
    own = split.list if split.list.is_dir() else split.list.parent
    return _Chosen(lines, listing.classes, layout, listing.root or split.root or own)


def _all_classes(data: DataSettings, chosen: dict[SplitName, _Chosen]) -> Classes:
    """The classes before any is left out."""
    if data.labels is not None:
        return read_labels(data.labels)
    for name in get_args(SplitName):
        if getattr(data, name) is not None:
            split = _split(data, name)
            names = _names(chosen[name] if name in chosen else _choose(split, name))
            if names:
                return Classes.of(names, str(split.list))
    if data.train is None and data.validation is None and data.test is not None:
        return Classes.of((), str(data.test.list))  # a test list without answers, of which only predictions are wanted
    raise SttmError("no list names the classes; give data.labels, a file such as labels.json or classInd.txt.")


def _names(chosen: _Chosen) -> tuple[str, ...]:
    """The classes that a list names itself; up to the greatest number, where it has numbers."""
    if chosen.classes is not None:
        return chosen.classes
    labels = {str(line.label) for line in chosen.lines if line.label is not None}
    if not all(label.isascii() and label.isdecimal() for label in labels):
        return tuple(sorted(labels))
    most = max(map(int, labels), default=-1)
    if most > _MOST_CLASSES:
        raise SttmError(f"label {most} is no number of a class; check the layout of the list, read as {chosen.layout}.")
    return tuple(map(str, range(most + 1)))


def _without(every: Classes, names: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    """The places of the classes that stay, and their names."""
    dropped = set()
    for name in names:
        place = every.place(name)
        if place is None:
            raise SttmError(f"data.without has {name!r}, no class of {every.source}; {every.nearest(name)}")
        dropped.add(place)
    kept = [place for place in range(len(every.names)) if place not in dropped]
    if every.names and not kept:
        raise SttmError(f"data.without leaves none of the {len(every.names)} classes of {every.source}; keep some.")
    return kept, tuple(every.names[place] for place in kept)


def _place(line: Line, classes: Classes, *, needed: bool) -> int | None:
    if line.label is None:
        if needed:
            raise SttmError(f"{line.where} has no label; only a list of test videos may go without.")
        return None
    place = classes.place(line.label)
    if place is None:
        known = f"none of the {len(classes.names)} classes of {classes.source}"
        raise SttmError(f"{line.where} has the label {line.label!r}, {known}; {classes.nearest(line.label)}")
    return place


def _refuse_missing(data: DataSettings, name: SplitName, missing: list[str], num_found: int) -> None:
    total = len(missing) + num_found
    if len(missing) > data.max_missing * total:
        share = f"{len(missing)} of {total} videos of data.{name} are missing ({len(missing) / total:.1%})"
        limit = f"more than data.max_missing={data.max_missing:g} allows"
        raise SttmError(f"{share}, {limit}; the first is {missing[0]}: set data.root to where the videos are.")


def _refuse_empty_classes(videos: list[Video], classes: tuple[str, ...], source: str) -> None:
    counts = Counter(video.label for video in videos)
    empty = [name for number, name in enumerate(classes) if not counts[number]]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        what = f"no clip to train on for {shown} of the {len(classes)} classes of {source}"
        raise SttmError(f"there is {what}; mend data.train.list, or leave them out with data.without.")


class _Finder:
    """Looks for files by listing each folder once: asking for every file by itself is slow on a network disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, tuple[str, dict[str, bool], dict[str, str]]] = {}

    def find(self, line: Line, label: int | None) -> Video | str:
        """The video of a line; or, if it is nowhere, the first path where it was looked for."""
        if line.part is not None:
            return Video(line.places[0], label, part=line.part)
        tried = None
        for place in line.places:
            folder, slash, name = place.rstrip("/").rpartition("/")
            prefix, entries, stems = self._folder(folder or slash)
            found = stems.get(name, name) if line.any_suffix else name
            if found in entries and (not line.any_suffix or name in stems or entries[found]):
                if line.frames is not None and not entries[found]:
                    raise multi_label(
                        f"{prefix}{found} is a file, no folder of frames, and {line.where} has more numbers"
                    )
                return Video(prefix + found, label, line.frames or ((0, None) if entries[found] else None))
            tried = tried or prefix + (f"{name}.*" if line.any_suffix else name)
        assert tried is not None, line
        return tried

    def _folder(self, folder: str) -> tuple[str, dict[str, bool], dict[str, str]]:
        """What paths in a folder begin with, its entries with whether each is a folder, its videos by their stems."""
        if folder not in self._folders:
            path = Path(self.root, folder)
            try:
                with os.scandir(path) as found:
                    entries = {entry.name: entry.is_dir() for entry in found}
            except (FileNotFoundError, NotADirectoryError):
                entries = {}
            except OSError as error:
                raise SttmError(f"the folder {path} cannot be listed ({error.strerror}); allow reading it.") from error
            parted = [(name, *name.rpartition(".")) for name in sorted(entries, reverse=True) if not entries[name]]
            stems = {stem: name for name, stem, dot, suffix in parted if dot + suffix.lower() in VIDEO_SUFFIXES}
            self._folders[folder] = str(path / "x")[:-1], entries, stems
        return self._folders[folder]
