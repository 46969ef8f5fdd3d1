"""Annotation files as the field writes them: each layout is known by its content and read line by line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm.data.datasets import shards
from sttm.data.datasets.labels import read_text
from sttm.data.datasets.lists import PICTURE_SUFFIXES, SPLITS, VIDEO_SUFFIXES, Line, Listing, Source, lines_of
from sttm.errors import SttmError

_HMDB_NAME = re.compile(r"(.+)_test_split(\d+)\.txt")
_UCF_LINE = re.compile(r"(?:.*/)?([^/]+)/v_([^/]+)_g\d+_c\d+\.\w+(?:\s+(\d+))?")
_NUMBERED = re.compile(r"(.+?)((?:[\s,]+-?\d+)+)")


@dataclass(frozen=True)
class Layout:
    """How one kind of list is known, and how it is read."""

    about: str
    fits: Callable[[Source], bool]
    read: Callable[[Source], Listing]


def _read_kinetics(source: Source) -> Listing:
    lines = []
    for where, row in source.table("youtube_id", "time_start", "time_end"):
        try:
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        except (ValueError, OverflowError):
            times = f"time_start={row['time_start']!r} and time_end={row['time_end']!r}"
            raise SttmError(f"{where} has {times}; give seconds as numbers.") from None
        stem, label = f"{row['youtube_id']}_{start:06d}_{end:06d}", row.get("label") or None
        folders = () if label is None else (f"{label}/", f"{label.replace(' ', '_')}/")
        places = tuple(dict.fromkeys((*(folder + stem for folder in folders), stem)))
        lines.append(Line(places, label, where, any_suffix=True, columns=row))
    return Listing(lines)


def _read_csv(source: Source) -> Listing:
    rows = source.table("path", "label")
    return Listing([Line((row["path"],), row["label"] or None, where, columns=row) for where, row in rows])


def _read_ssv2(source: Source) -> Listing:
    try:
        entries: Any = json.loads(source.text)
    except ValueError as error:
        raise SttmError(f"{source.path} is not JSON ({error}); download it again.") from error
    lines = []
    if not isinstance(entries, list):
        raise SttmError(f"{source.path} is JSON, but no list of videos; labels.json goes to data.labels.")
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number} of {source.path}"
        if not isinstance(entry, dict) or "id" not in entry:
            raise SttmError(f'{where} has no "id"; wanted is {{"id": ..., "template": ...}}, or the id alone.')
        template = entry.get("template")
        label = None if template is None else str(template).replace("[", "").replace("]", "")
        lines.append(Line((str(entry["id"]),), label, where, any_suffix=True))
    return Listing(lines)


def _read_jester(source: Source) -> Listing:
    parted = [(where, *line.partition(";")) for where, line in source.lines]
    return Listing([Line((name.strip(),), label.strip() or None, at, any_suffix=True) for at, name, _, label in parted])


def _read_ucf101(source: Source) -> Listing:
    lines = []
    for where, line in source.lines:
        if not (match := _UCF_LINE.fullmatch(line)):
            raise SttmError(f"{where} is not Class/v_Class_g01_c01.avi: {line[:80]!r}; check data.*.layout.")
        path = line if match[3] is None else line[: match.start(3)].rstrip()
        # The number after it counts from 1 in the official lists and from 0 in others: the folder does not.
        lines.append(Line((path,), match[1], where))
    return Listing(lines)


def _hmdb_files(source: Source) -> list[Path]:
    """The files of an HMDB51 split: their names hold the classes."""
    folder, pattern = (source.path, "*.txt") if source.path.is_dir() else (source.path.parent, source.path.name)
    files = [source.path] if source.path.is_file() else folder.glob(pattern)
    return sorted(file for file in files if _HMDB_NAME.fullmatch(file.name))


def _read_hmdb51(source: Source) -> Listing:
    lines, numbers, classes = [], set(), []
    for file in _hmdb_files(source):
        match = _HMDB_NAME.fullmatch(file.name)
        assert match is not None, file
        classes.append(match[1])
        numbers.add(match[2])
        for where, line in lines_of(file, read_text(file)):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name:
                raise SttmError(f"{where} is not a name with 0, 1 or 2 after it: {line[:80]!r}; check data.*.layout.")
            split = ("unused", "train", "test")[int(use)]
            lines.append(Line((f"{match[1]}/{name.strip()}",), match[1], where, columns={"split": split}))
    if len(numbers) > 1:
        pattern = source.path / f"*_test_split{min(numbers)}.txt"
        raise SttmError(f"{source.path} holds the splits {', '.join(sorted(numbers))}; choose one: list: {pattern}")
    return Listing(lines, tuple(sorted(classes)))


def _numbers(source: Source) -> Iterator[tuple[str, str, list[int]]]:
    for where, line in source.lines:
        if not (match := _NUMBERED.fullmatch(line)):
            raise SttmError(f"{where} is no path with numbers after it: {line[:80]!r}; check data.*.layout.")
        yield where, match[1].strip('"'), [int(number) for number in match[2].replace(",", " ").split()]


def _read_list(source: Source) -> Listing:
    lines = []
    for where, path, numbers in _numbers(source):
        if len(numbers) > 1:
            raise multi_label(f"{where} has {len(numbers)} numbers after the path")
        lines.append(Line((path,), numbers[0] if numbers[0] >= 0 else None, where))  # SlowFast's tests have -1
    return Listing(lines)


def _read_frames(source: Source) -> Listing:
    rows = list(_numbers(source))
    counts = {len(numbers) for _, _, numbers in rows}
    if counts - {2, 3} or len(counts) > 1 or any(numbers[-2] < 1 for _, _, numbers in rows):
        raise multi_label(f"{source.path} has {' or '.join(map(str, sorted(counts)))} numbers after a path")
    lines = []
    for where, path, (*offset, total, label) in rows:
        stem, dot, suffix = path.rpartition(".")
        is_video = f".{suffix.lower()}" in VIDEO_SUFFIXES
        places = (path, stem) if dot and is_video else (path,)
        frames = (offset[0] if offset else 0, total)
        lines.append(Line(places, label if label >= 0 else None, where, frames=frames))
    return Listing(lines)


def multi_label(what: str) -> SttmError:
    """The error for lists in which a video has several labels."""
    return SttmError(
        f"{what}, which reads as several labels: sttm trains on one label a video; give `path label` for videos, "
        "`folder total label` or `folder offset total label` for folders of frames."
    )


def _read_folders(source: Source) -> Listing:
    """A folder for each class, below folders for the splits or not."""
    aliases = {alias for names in SPLITS.values() for alias in names}
    tops = _subfolders(source.path)
    has_splits = bool(tops) and all(top.name in aliases for top in tops)
    lines, classes = [], set()
    for top in tops if has_splits else [source.path]:
        columns = {"split": top.name} if has_splits else {}
        for folder in _subfolders(top):
            classes.add(folder.name)
            for place, is_folder in _videos_below(folder):
                relative = place.relative_to(source.path).as_posix()
                frames = (0, None) if is_folder else None
                lines.append(Line((relative,), folder.name, str(place), frames=frames, columns=columns))
    return Listing(lines, tuple(sorted(classes)), root=source.path)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _videos_below(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Video files, and folders of pictures, in the order of their names."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if any(Path(name).suffix.lower() in PICTURE_SUFFIXES for name in files) and Path(here) != folder:
            yield Path(here), True
        yield from ((Path(here, name), False) for name in sorted(files) if _is_video(name))


def _is_video(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES


def _read_shards(source: Source) -> Listing:
    return Listing(shards.index(shards.expand(source.path)))


def _fits_ucf101(source: Source) -> bool:
    matches = [_UCF_LINE.fullmatch(line) for _, line in source.lines]
    official = all(match and match[1].lower() == match[2].lower() for match in matches)
    return bool(matches) and official and not any(match and match[3] == "0" for match in matches)


def _numbers_after_paths(source: Source) -> set[int]:
    """How many numbers lines end in; a 0 for lines with none."""
    if source.header:
        return {0}
    matches = (_NUMBERED.fullmatch(line) for _, line in source.lines)
    return {len(match[2].replace(",", " ").split()) if match else 0 for match in matches}


def _fits_jester(source: Source) -> bool:
    one_label = all(re.fullmatch(r"[^;]+;[^;]+", line) for _, line in source.lines) and not source.header
    return bool(source.lines) and (one_label or all(line.isdecimal() for _, line in source.lines))


#: Every layout that is known, the special ones before those that would also fit their lists.
LAYOUTS: dict[str, Layout] = {
    "shards": Layout(
        "webdataset tar files: a pattern such as 'train-{000000..000099}.tar', key.mp4 with key.cls, .txt or .json",
        lambda source: source.path.suffix == ".tar" or (source.path.is_dir() and any(source.path.glob("*.tar"))),
        _read_shards,
    ),
    "hmdb51": Layout(
        "a folder, or a pattern, of Class_test_split1.txt with `name.avi 1` a line (1 trains, 2 tests)",
        lambda source: bool(_hmdb_files(source)),
        _read_hmdb51,
    ),
    "folders": Layout("a folder for each class", lambda source: source.path.is_dir(), _read_folders),
    "ssv2": Layout(
        "Something-Something's JSON: id and template", lambda s: s.text.lstrip().startswith(("[", "{")), _read_ssv2
    ),
    "kinetics": Layout(
        "the official csv: label,youtube_id,time_start,time_end,split",
        lambda source: source.header and "youtube_id" in source.lines[0][1],
        _read_kinetics,
    ),
    "csv": Layout("a csv with a header: path,label and any more", lambda source: source.header, _read_csv),
    "jester": Layout("`id;label` a line (Jester, and Something-Something's test answers)", _fits_jester, _read_jester),
    "ucf101": Layout("`Class/v_Class_g01_c01.avi`, with or without a number", _fits_ucf101, _read_ucf101),
    "list": Layout(
        "`path label` a line (VideoMAE, SlowFast, mmaction2)", lambda s: _numbers_after_paths(s) == {1}, _read_list
    ),
    "frames": Layout(
        "`folder total label` or `folder offset total label` a line, of folders of pictures (mmaction2, PaddleVideo)",
        lambda source: min(_numbers_after_paths(source), default=0) >= 1,
        _read_frames,
    ),
}


def read_listing(path: Path, layout: str, setting: str) -> tuple[Listing, str]:
    """Read a list in the layout that is named, or in the one that its content shows; the layout too.

    Raises:
        SttmError: if there is no such list or layout, or its content is none that is known or not in order.
    """
    known = "; ".join(f"{name}: {kind.about}" for name, kind in LAYOUTS.items())
    if layout not in ("auto", *LAYOUTS):
        raise SttmError(f"{setting}.layout={layout} is none of auto, {', '.join(LAYOUTS)}; choose one of them.")
    source = Source(path)
    if not path.exists() and not any(sign in path.name for sign in "*?[{"):
        raise SttmError(f"{setting}.list={path} does not exist; check the path.")
    found = layout if layout != "auto" else next((name for name, kind in LAYOUTS.items() if kind.fits(source)), None)
    if found is None:
        first = f"begins with {source.lines[0][1][:60]!r}" if source.lines else "is empty or matches no file"
        raise SttmError(f"{setting}.list={path} {first} and is in no layout that is known ({known}).")
    listing = LAYOUTS[found].read(source)
    if not listing.lines:
        raise SttmError(f"{setting}.list={path} lists no video (read as {found}: {LAYOUTS[found].about}).")
    return listing, found
