"""What an annotation file says, whatever its format: one Annotation a video, and the classes that it names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sttm.data.datasets.labels import read_text
from sttm.data.video.video import ShardMember
from sttm.errors import SttmError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}

_HEADER = re.compile(r'"?[A-Za-z_][\w ]*"?(\s*[,;\t]\s*"?[A-Za-z_][\w ]*"?)+')


@dataclass(frozen=True, slots=True)
class Annotation:
    """One video as an annotation file has it."""

    paths: tuple[str, ...]
    """Paths from the root where it may be, the likeliest first."""
    label: str | int | None
    where: str
    """Line and file, for messages."""
    any_suffix: bool = False
    """Whether the paths lack the suffix, which may be that of any video; or they are folders of frames."""
    frames: tuple[int, int | None] | None = None
    """Of a folder of frames: how many to skip, and how many there are (None: all that follow)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    member: ShardMember | None = None


@dataclass(frozen=True)
class AnnotationList:
    """All that one annotation file says."""

    annotations: list[Annotation]
    classes: tuple[str, ...] | None = None
    """Names of all classes where the format names them, also of those without a video."""
    root: Path | None = None
    """Where the paths start whatever the settings say: for a list that is the videos' own folder."""
    skipped: tuple[str, ...] = ()
    """Paths of the files that a scan of that folder found and left out."""


@dataclass(frozen=True)
class AnnotationFile:
    """What the setting `list` names: a file, a folder or a pattern; its text is read at most once."""

    path: Path

    @cached_property
    def text(self) -> str:
        """The whole text; empty for a folder or a pattern."""
        return read_text(self.path) if self.path.is_file() else ""

    @cached_property
    def lines(self) -> list[tuple[str, str]]:
        """Where each line is and what it says, without blank lines and comments."""
        return numbered_lines(self.path, self.text)

    @property
    def has_header(self) -> bool:
        """Whether the first line names columns."""
        return bool(self.lines and _HEADER.fullmatch(self.lines[0][1]))

    def rows(self, *required: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the rows of a csv with a header, and where each is.

        Raises:
            SttmError: if a required column is missing, a row has another number of cells, or it is no csv.
        """
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
                    if not set(required) <= set(header):
                        found = f"has the columns {', '.join(header)}"
                        raise SttmError(f"{self.path} {found} but needs {', '.join(required)}; rename or add them")
                elif len(cells) != len(header):
                    counts = f"has {len(cells)} cells where the header has {len(header)}"
                    raise SttmError(f"{where} {counts}; put quotes around a cell that holds {delimiter!r}")
                else:
                    yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise SttmError(f"line {rows.line_num} of {self.path} is no csv ({error}); correct its quotes") from error


def numbered_lines(path: Path, text: str) -> list[tuple[str, str]]:
    """Return where each line is and what it says, without blank lines and comments."""
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(f"line {number} of {path}", line) for number, line in stripped if line and not line.startswith("#")]
