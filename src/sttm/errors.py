"""The one error that users meet."""

import reprlib
from collections.abc import Collection
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class SttmError(ValueError):
    """A mistake that the caller can fix: what was wrong, what is allowed, what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message without its full stop, or the class name where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else "") or type(error).__name__


def quoted(value: Any) -> str:
    """Return a value as Python writes it, cut to a length and depth that fit into a sentence."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def few(names: Collection[str], most: int = 3) -> str:
    """Return the first names of many, each cut to 100 characters, and how many more there are."""
    shown = ", ".join(name if len(name) <= 100 else f"{name[:97]}..." for name in sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
