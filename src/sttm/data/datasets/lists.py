"""What a list of videos comes to, whatever its layout: its lines, and the classes that it names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sttm.data.datasets.labels import read_text
from sttm.errors import SttmError

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)
PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}

_HEADER = re.compile(r'"?[A-Za-z_][\w ]*"?(\s*[,;\t]\s*"?[A-Za-z_][\w ]*"?)+')


def lines_of(path: Path, text: str) -> list[tuple[str, str]]:
    """Lines with their places, without blank ones and comments."""
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(f"line {number} of {path}", line) for number, line in stripped if line and not line.startswith("#")]


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of a video inside another file."""

    file: str
    offset: int
    size: int

    def open(self) -> io.BytesIO:
        """The bytes as a file of their own.

        Raises:
            SttmError: if the file is gone or has become shorter.
        """
        try:
            with Path(self.file).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise SttmError(f"{self.file} cannot be read ({error.strerror}); check the disk.") from error
        if len(data) < self.size:
            raise SttmError(f"{self.file} is cut off within a video; download it again.")
        return io.BytesIO(data)


@dataclass(frozen=True, slots=True)
class Line:
    """One video as a list has it."""

    places: tuple[str, ...]
    """Paths from the root where it may lie, the likeliest first."""
    label: str | int | None
    where: str
    """The line's place in its file, for messages."""
    any_suffix: bool = False
    """The places are without the suffix, which may be that of any video; or they are folders of frames."""
    frames: tuple[int, int | None] | None = None
    """Of a folder of frames: how many to skip, and how many there are (all that follow if unknown)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    part: Part | None = None


@dataclass(frozen=True)
class Listing:
    """All that one annotation file says."""

    lines: list[Line]
    classes: tuple[str, ...] | None = None
    """Names of classes that the list has even where it has no line of theirs."""
    root: Path | None = None
    """Where its paths start, whatever the settings say: for lists that are the videos' own folder."""


@dataclass(frozen=True)
class Source:
    """What the setting `list` names: a file, a folder or a pattern, read at most once."""

    path: Path

    @cached_property
    def text(self) -> str:
        return read_text(self.path) if self.path.is_file() else ""

    @cached_property
    def lines(self) -> list[tuple[str, str]]:
        """Where each line stands and what it says, without blank lines and comments."""
        return lines_of(self.path, self.text)

    @property
    def header(self) -> bool:
        return bool(self.lines and _HEADER.fullmatch(self.lines[0][1]))

    def table(self, *wanted: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Rows of a csv with a header, each with its place."""
        delimiter = max(",;\t", key=self.lines[0][1].count) if self.lines else ","
        rows = csv.reader(io.StringIO(self.text), delimiter=delimiter, skipinitialspace=True, strict=True)
        header: list[str] | None = None
        try:
            for row in rows:
                cells, where = [cell.strip() for cell in row], f"line {rows.line_num} of {self.path}"
                if not any(cells) or cells[0].startswith("#"):
                    continue
                if header is None:
                    header = cells
                    if not set(wanted) <= set(header):
                        found = f"has the columns {', '.join(header)}"
                        raise SttmError(f"{self.path} {found}; wanted are {', '.join(wanted)}: rename or add them.")
                elif len(cells) != len(header):
                    counts = f"has {len(cells)} cells where the header has {len(header)}"
                    raise SttmError(f"{where} {counts}; put quotes around a cell that holds {delimiter!r}.")
                else:
                    yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise SttmError(f"line {rows.line_num} of {self.path} is no csv ({error}); mend its quotes.") from error
