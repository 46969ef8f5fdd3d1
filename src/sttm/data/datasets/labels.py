"""The classes of a data set: label files, and which class names depend on left and right."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sttm.config.parsing import MAX_LIST, parse_json, read_bytes
from sttm.errors import SttmError, did_you_mean, first_line

_DIRECTIONS = {"left", "right", "leftward", "rightward", "leftwards", "rightwards", "leftmost", "rightmost"}
_DIRECTIONS |= {"clockwise", "counterclockwise", "anticlockwise"}


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, and the number that each has in its lists."""

    names: tuple[str, ...]
    numbers: Mapping[int, int]
    """From the number in lists to the index in `names`: they differ where a file counts from 1 or skips numbers."""
    origin: str
    """The file that names them, for messages."""
    first: int = 0
    """The number that this file gives the first of them; those of lists count from 0."""

    @classmethod
    def of(cls, names: Iterable[str], origin: str) -> Classes:
        """Number the names from 0."""
        listed = tuple(names)
        return cls(listed, {number: number for number in range(len(listed))}, origin)

    def index(self, label: str | int) -> int | None:
        """Return the index of a class by its name or its number; None if there is no such class."""
        if isinstance(label, int):
            return self.numbers.get(label)
        if (found := self._by_name.get(label)) is not None:
            return found
        if (found := self._by_plain_name.get(plain(label))) is not None:
            return found
        return self.numbers.get(int(label)) if label.isascii() and label.isdecimal() and len(label) < 19 else None

    def nearest(self, label: str | int) -> str:
        """Return advice for a label that is no class."""
        return did_you_mean(label, self.names, f"the first of them is {self.names[0]!r}")

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _by_plain_name(self) -> dict[str, int]:
        """Return the names that stay different where capitals and underscores do not count."""
        names = [plain(name) for name in self.names]
        return {name: index for index, name in enumerate(names) if names.count(name) == 1}


def plain(name: str) -> str:
    """Return a name in small letters and with spaces: Kinetics' folders write riding_a_bike for "riding a bike"."""
    return " ".join(name.replace("_", " ").casefold().split())


def read_labels(path: Path) -> Classes:
    """Read the names of the classes in the order of their numbers.

    Accepted are JSON ({"name": number}, {"number": name}, a list of names, or a list of the words of each), a name a
    line, a number and a name a line (from 0 or from 1, as classInd.txt), and a csv with the columns id and name.

    Raises:
        SttmError: for a file that is none of these, or names a class or a number twice.
    """
    text = read_text(path)
    if text.lstrip().startswith(("{", "[")):
        pairs = _from_json(path, text)
    else:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if lines and lines[0].replace(" ", "").lower() == "id,name":
            lines = [" ".join(row) for row in csv.reader(lines[1:])]
        numbered = [re.fullmatch(r"(\d{1,18})[\s,]+(\S.*)", line) for line in lines]
        if all(numbered):
            pairs = [(int(match[1]), match[2]) for match in numbered if match]
        else:
            pairs = list(enumerate(lines))
    pairs = sorted((number, name.strip().strip('"')) for number, name in pairs)
    numbers, names = [number for number, _ in pairs], tuple(name for _, name in pairs)
    if not names:
        raise SttmError(f"{path} names no class; give a name a line, or JSON such as labels.json")
    for values in (numbers, names):
        twice = [value for value, other in zip(sorted(values), sorted(values)[1:], strict=False) if value == other]
        if twice:
            raise SttmError(f"{path} gives {twice[0]!r} twice; every class needs its own name and number")
    first = min(numbers[0], 1)  # 1 in classInd.txt
    return Classes(names, {number - first: index for index, number in enumerate(numbers)}, str(path), numbers[0])


def _from_json(path: Path, text: str) -> list[tuple[int, str]]:
    values = parse_json(text, path)
    try:
        if isinstance(values, list):
            names = (" ".join(value) if isinstance(value, list) else str(value) for value in values)
            return list(enumerate(names))
        if all(str(key).isdecimal() for key in values) and not all(str(value).isdecimal() for value in values.values()):
            return [(int(key), str(value)) for key, value in values.items()]
        return [(int(value), key) for key, value in values.items()]
    except (ValueError, TypeError, AttributeError) as error:
        allowed = '{"name": number}, {"number": name} or a list of names'
        raise SttmError(
            f"{path} is no label map ({first_line(error)[:100]}); give JSON such as {allowed}, or a name a line"
        ) from error


def read_text(path: Path) -> str:
    """Read UTF-8 text, with or without a byte order mark; raise SttmError if that is not possible."""
    try:
        return read_bytes(path, MAX_LIST).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise SttmError(f"cannot read {path} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SttmError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def directional(names: Sequence[str]) -> list[str]:
    """Return the names that say left, right or a sense of rotation, whose clips must not be mirrored.

    A mirror does not change up and down, and "upright" or "breaststroke" hold no such word. One class is enough:
    the clips that a mirror would turn into its counterpart may have another name.
    """
    return [name for name in names if _words(name) & _DIRECTIONS]


def _words(name: str) -> set[str]:
    separated = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # SwipeLeft
    separated = re.sub(r"(?i)(anti|counter)[-\s_]clockwise", r"\1clockwise", separated)
    return set(re.findall(r"[a-z]+", separated.replace("_", " ").lower()))
