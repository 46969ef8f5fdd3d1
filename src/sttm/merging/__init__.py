"""The mathematics of merging: knows neither models nor files."""

from __future__ import annotations

from sttm.errors import SttmError
from sttm.merging.merger import TokenMerger

#: Every way to leave fewer tokens, behind one call: `METHODS[name](dim, frames, tokens, frames_in=..., ...)`.
METHODS: dict[str, type[TokenMerger]] = {"sttm": TokenMerger}


def method_named(name: str) -> type[TokenMerger]:
    """The reducer of that name; SttmError lists the names there are."""
    if name not in METHODS:
        raise SttmError(f"unknown method {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]
