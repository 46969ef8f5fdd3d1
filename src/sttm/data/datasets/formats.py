"""The annotation formats of the field: how each is recognised by its content, and how it is read.

To add a format: write its reader here, and register it in `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm.config.parsing import parse_json
from sttm.data.datasets import class_folders, shards
from sttm.data.datasets.annotations import Annotation, AnnotationFile, AnnotationList, numbered_lines
from sttm.data.datasets.labels import read_text
from sttm.data.video.video import VIDEO_SUFFIXES
from sttm.errors import SttmError, shown, unknown

_HMDB_NAME = re.compile(r"(.+)_test_split(\d+)\.txt")
_UCF_LINE = re.compile(r"(?:.*/)?([^/]+)/v_([^/]+)_g\d+_c\d+\.\w+(?:\s+(\d+))?")
_NUMBERED = re.compile(r"(.+?)((?:[\s,]+-?\d{1,18})+)")


@dataclass(frozen=True)
class Format:
    """How one kind of annotation file is recognised and read."""

    about: str
    matches: Callable[[AnnotationFile], bool]
    read: Callable[[AnnotationFile], AnnotationList]


def _read_kinetics(file: AnnotationFile) -> AnnotationList:
    annotations = []
    for where, row in file.rows("youtube_id", "time_start", "time_end"):
        try:
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        except (ValueError, OverflowError):
            times = f"time_start={row['time_start']!r} and time_end={row['time_end']!r}"
            raise SttmError(f"{where} has {times}; give seconds as numbers") from None
        stem, label = f"{row['youtube_id']}_{start:06d}_{end:06d}", row.get("label") or None
        folders = () if label is None else (f"{label}/", f"{label.replace(' ', '_')}/")
        paths = tuple(dict.fromkeys((*(folder + stem for folder in folders), stem)))
        annotations.append(Annotation(paths, label, where, any_suffix=True, columns=row))
    return AnnotationList(annotations)


def _read_csv(file: AnnotationFile) -> AnnotationList:
    rows = file.rows("path", "label")
    return AnnotationList([Annotation((row["path"],), row["label"] or None, where, columns=row) for where, row in rows])


def _entries(file: AnnotationFile, key: str, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a JSON list, each of which needs a key, and where each is."""
    entries = parse_json(file.text, file.path, "download it again")
    if not isinstance(entries, list):
        raise SttmError(f"{file.path} is JSON, but no list of videos; labels.json goes to data.labels")
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number} of {file.path}"
        if not isinstance(entry, dict) or key not in entry:
            raise SttmError(f'{where} has no "{key}"; give {example}')
        yield where, entry


def _read_ssv2(file: AnnotationFile) -> AnnotationList:
    annotations = []
    for where, entry in _entries(file, "id", '{"id": ..., "template": ...}, or the id alone'):
        template = entry.get("template")
        label = None if template is None else str(template).replace("[", "").replace("]", "")
        annotations.append(Annotation((str(entry["id"]),), label, where, any_suffix=True))
    return AnnotationList(annotations)


def _read_diving48(file: AnnotationFile) -> AnnotationList:
    annotations = []
    for where, entry in _entries(file, "vid_name", '{"vid_name": ..., "label": ...}, or the name alone'):
        if not isinstance(label := entry.get("label"), int | None):
            raise SttmError(f"{where} has the label {shown(label)}; give the number of a class")
        # start_frame and end_frame count in the video of one dive itself: they are all of it.
        annotations.append(Annotation((str(entry["vid_name"]),), label, where, any_suffix=True))
    return AnnotationList(annotations)


def _read_jester(file: AnnotationFile) -> AnnotationList:
    parted = [(where, *line.partition(";")) for where, line in file.lines]
    return AnnotationList(
        [Annotation((name.strip(),), label.strip() or None, at, any_suffix=True) for at, name, _, label in parted]
    )


def _read_ucf101(file: AnnotationFile) -> AnnotationList:
    annotations = []
    for where, line in file.lines:
        if not (match := _UCF_LINE.fullmatch(line)):
            raise SttmError(f"{where} is not Class/v_Class_g01_c01.avi: {line[:80]!r}; check data.*.format")
        path = line if match[3] is None else line[: match.start(3)].rstrip()
        # The number after it counts from 1 in the official lists and from 0 in others: the folder does not.
        annotations.append(Annotation((path,), match[1], where))
    return AnnotationList(annotations)


def _hmdb_files(path: Path) -> list[Path]:
    """Return the files of an HMDB51 split, whose names hold the classes."""
    folder, pattern = (path, "*.txt") if path.is_dir() else (path.parent, path.name)
    files = [path] if path.is_file() else folder.glob(pattern)
    return sorted(file for file in files if _HMDB_NAME.fullmatch(file.name))


def _read_hmdb51(file: AnnotationFile) -> AnnotationList:
    annotations, numbers, classes = [], set(), []
    for path in _hmdb_files(file.path):
        match = _HMDB_NAME.fullmatch(path.name)
        assert match is not None, path
        name_of_class, number = match.groups()
        classes.append(name_of_class)
        numbers.add(number)
        for where, line in numbered_lines(path, read_text(path)):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name:
                raise SttmError(f"{where} is not a name with 0, 1 or 2 after it: {line[:80]!r}; check data.*.format")
            columns = {"split": ("unused", "train", "test")[int(use)]}
            annotations.append(Annotation((f"{name_of_class}/{name.strip()}",), name_of_class, where, columns=columns))
    if len(numbers) > 1:
        pattern = file.path / f"*_test_split{min(numbers)}.txt"
        raise SttmError(f"{file.path} holds the splits {', '.join(sorted(numbers))}; choose one: list: {pattern}")
    return AnnotationList(annotations, tuple(sorted(classes)))


def _numbers(file: AnnotationFile) -> Iterator[tuple[str, str, list[int]]]:
    """Yield where each line is, its path, and the numbers after it."""
    for where, line in file.lines:
        if not (match := _NUMBERED.fullmatch(line)):
            raise SttmError(f"{where} is no path with numbers after it: {line[:80]!r}; check data.*.format")
        yield where, match[1].strip('"'), [int(number) for number in match[2].replace(",", " ").split()]


def _read_list(file: AnnotationFile) -> AnnotationList:
    annotations = []
    for where, path, numbers in _numbers(file):
        if len(numbers) > 1:
            raise multi_label(f"{where} has {len(numbers)} numbers after the path")
        label = numbers[0] if numbers[0] >= 0 else None  # SlowFast's tests have -1
        annotations.append(Annotation((path,), label, where))
    return AnnotationList(annotations)


def _read_frames(file: AnnotationFile) -> AnnotationList:
    rows = list(_numbers(file))
    counts = {len(numbers) for _, _, numbers in rows}
    if counts - {2, 3} or len(counts) > 1 or any(numbers[-2] < 1 for _, _, numbers in rows):
        raise multi_label(f"{file.path} has {' or '.join(map(str, sorted(counts)))} numbers after a path")
    annotations = []
    for where, path, (*offset, total, label) in rows:
        stem, _, suffix = path.rpartition(".")
        paths = (path, stem) if stem and f".{suffix.lower()}" in VIDEO_SUFFIXES else (path,)
        frames = (offset[0] if offset else 0, total)
        annotations.append(Annotation(paths, label if label >= 0 else None, where, frames=frames))
    return AnnotationList(annotations)


def multi_label(what: str) -> SttmError:
    """Return the error for lists in which a video has several labels."""
    return SttmError(
        f"{what}, which reads as several labels, but sttm trains on one label a video; give `path label` for videos, "
        "`folder total label` or `folder offset total label` for folders of frames"
    )


def _read_shards(file: AnnotationFile) -> AnnotationList:
    return AnnotationList(shards.index(shards.expand(file.path)))


def _is_ucf101(file: AnnotationFile) -> bool:
    matches = [_UCF_LINE.fullmatch(line) for _, line in file.lines]
    official = all(match and match[1].lower() == match[2].lower() for match in matches)
    return bool(matches) and official and not any(match and match[3] == "0" for match in matches)


def _numbers_after_paths(file: AnnotationFile) -> set[int]:
    """Return how many numbers the lines end in; 0 for lines with none."""
    if file.has_header:
        return {0}
    matches = (_NUMBERED.fullmatch(line) for _, line in file.lines)
    return {len(match[2].replace(",", " ").split()) if match else 0 for match in matches}


def _is_jester(file: AnnotationFile) -> bool:
    one_label = all(re.fullmatch(r"[^;]+;[^;]+", line) for _, line in file.lines) and not file.has_header
    return bool(file.lines) and (one_label or all(line.isdecimal() for _, line in file.lines))


#: Every format; a special one comes before those that would also match its files.
FORMATS: dict[str, Format] = {
    "shards": Format(
        "webdataset tar files: a pattern such as 'train-{000000..000099}.tar', key.mp4 with key.cls, .txt or .json",
        lambda file: file.path.suffix == ".tar" or (file.path.is_dir() and any(file.path.glob("*.tar"))),
        _read_shards,
    ),
    "hmdb51": Format(
        "a folder, or a pattern, of Class_test_split1.txt with `name.avi 1` a line (1 trains, 2 tests)",
        lambda file: bool(_hmdb_files(file.path)),
        _read_hmdb51,
    ),
    "folders": Format("a folder for each class", lambda file: file.path.is_dir(), class_folders.read),
    "diving48": Format(
        "Diving48's JSON: vid_name, label, start_frame and end_frame",
        lambda file: file.text.lstrip().startswith("[") and '"vid_name"' in file.text,
        _read_diving48,
    ),
    "ssv2": Format(
        "Something-Something's JSON: id and template",
        lambda file: file.text.lstrip().startswith(("[", "{")),
        _read_ssv2,
    ),
    "kinetics": Format(
        "the official csv: label,youtube_id,time_start,time_end,split",
        lambda file: file.has_header and "youtube_id" in file.lines[0][1],
        _read_kinetics,
    ),
    "csv": Format("a csv with a header: path,label and any more", lambda file: file.has_header, _read_csv),
    "jester": Format("`id;label` a line (Jester, and Something-Something's test answers)", _is_jester, _read_jester),
    "ucf101": Format("`Class/v_Class_g01_c01.avi`, with or without a number", _is_ucf101, _read_ucf101),
    "list": Format(
        "`path label` a line (VideoMAE, SlowFast, mmaction2)",
        lambda file: _numbers_after_paths(file) == {1},
        _read_list,
    ),
    "frames": Format(
        "`folder total label` or `folder offset total label` a line, of folders of pictures (mmaction2, PaddleVideo)",
        lambda file: min(_numbers_after_paths(file), default=0) >= 1,
        _read_frames,
    ),
}


def read_annotations(path: Path, name: str, setting: str) -> tuple[AnnotationList, str]:
    """Read a list in the named format, or with "auto" in the one that its content matches; return the format too.

    Args:
        setting: the section of the config that names the list, for messages.

    Raises:
        SttmError: if there is no such list or format, or the content matches none or is broken.
    """
    if name not in ("auto", *FORMATS):
        raise unknown(f"{setting}.format", name, ("auto", *FORMATS))
    file = AnnotationFile(path)
    try:
        there = path.exists()
    except OSError as error:
        raise SttmError(f"{setting}.list={path} cannot be read: {error.strerror}; check the path") from error
    if not there and not any(sign in path.name for sign in "*?[{"):
        raise SttmError(f"{setting}.list={path} does not exist; check the path")
    found = name if name != "auto" else next((key for key, kind in FORMATS.items() if kind.matches(file)), None)
    if found is None:
        first = f"begins with {file.lines[0][1][:60]!r}" if file.lines else "is empty or matches no file"
        known = "; ".join(f"{key}: {kind.about}" for key, kind in FORMATS.items())
        raise SttmError(f"{setting}.list={path} {first} and is in no known format; known are: {known}")
    listed = FORMATS[found].read(file)
    if not listed.annotations:
        raise SttmError(f"{setting}.list={path} lists no video (read as {found}: {FORMATS[found].about}); check it")
    return listed, found
