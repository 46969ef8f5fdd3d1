"""The one error that users meet, and what its sentences have in common."""

import difflib
import re
import reprlib
from collections.abc import Collection, Iterable
from typing import Any

#: Characters of a user's own text that a message quotes at most.
QUOTED = 300
#: And of a name, which is short where it is right, and stands beside all the names there are.
NAME = 100

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class SttmError(ValueError):
    """A mistake that the caller can fix: what was wrong, what is allowed, what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


def quoted(text: object, most: int = QUOTED) -> str:
    """Return a user's text as a message quotes it: as it is, or its first characters where it is long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shortened(message: str) -> str:
    """Return a message whose long words are cut; no word of ours is as long: it is a path or a value of the user."""
    return re.sub(rf"\S{{{QUOTED + 1},}}", lambda word: quoted(word[0]), message)


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean ...?" with the known name nearest to an unknown one; `otherwise` where none is near."""
    near = difflib.get_close_matches(str(name)[:QUOTED], list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def unknown(what: str, name: object, known: Iterable[str], advice: str = "") -> SttmError:
    """Return the error for a name that is none of the known ones: what was given, what is nearest, what there is.

    Args:
        what: the kind of name, such as "method".
        advice: what to say besides; left out, the known names.
    """
    known = list(known)
    every = f"choose one of {', '.join(known)}" if len(known) > 2 else f"choose {' or '.join(known)}"
    near = did_you_mean(name, known)
    return SttmError(f"unknown {what} {quoted(name, NAME)!r}; {near} {advice or every}".replace(";  ", "; "))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message without its full stop, or the class name where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else "") or type(error).__name__


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to a length and depth that fit into a sentence."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def few(names: Collection[str], most: int = 3) -> str:
    """Return the first names of many, each cut to 100 characters, and how many more there are."""
    first = ", ".join(name if len(name) <= 100 else f"{name[:97]}..." for name in sorted(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
