"""What the user reads: tables and JSON on stdout, all else on stderr, as much of it as --quiet and --verbose ask for.

rich is imported inside the functions, so that `sttm --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sttm.errors import SttmError, quoted, shortened

if TYPE_CHECKING:
    from rich.console import Console

LOG = logging.getLogger("sttm.cli")


class _Stderr(logging.Handler):
    """Print records on what is stderr at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""  # under torchrun
        print(f"sttm: {prefix}{_clipped(record.getMessage())}", file=sys.stderr)


def _clipped(sentence: str) -> str:
    """Return a sentence with the arguments that it quotes cut where they are long."""
    for argument in sys.argv[1:]:
        for text in (argument, argument.partition("=")[2]):
            sentence = sentence.replace(text, quoted(text)) if text != quoted(text) else sentence
    return shortened(sentence)


LOG.addHandler(_Stderr())
LOG.propagate = False
LOG.setLevel(logging.INFO)


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what is printed on stderr: errors only, or details too, or, if neither is set, all but details."""
    if quiet and verbose:
        raise SttmError("--quiet and --verbose contradict each other; leave one of them out")
    LOG.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def is_quiet() -> bool:
    """Return whether --quiet was given."""
    return not LOG.isEnabledFor(logging.INFO)


def complain(sentence: str) -> None:
    """Print an error on stderr."""
    LOG.error("%s", sentence)


def warn(sentence: str) -> None:
    """Print a warning on stderr, unless --quiet was given."""
    LOG.warning("warning: %s", sentence)


def note(sentence: str) -> None:
    """Print on stderr what was done, unless --quiet was given."""
    LOG.info("%s", sentence)


def detail(sentence: str) -> None:
    """Print a sentence on stderr if --verbose was given."""
    LOG.debug("%s", sentence)


def complain_of_failure(sentence: str, error: BaseException) -> None:
    """Print an error on stderr; with --verbose, where it comes from too."""
    detail("".join(traceback.format_exception(error)).rstrip())
    complain(sentence)


def complain_of_videos(items: Sequence[str], what: str) -> None:
    """Print on stderr how many videos are missing, say, and the first ten of them; nothing if there are none."""
    if items:
        shown = "; ".join(items[:10]) + (f"; and {len(items) - 10} more" if len(items) > 10 else "")
        complain(f"{len(items)} video{'s' * (len(items) != 1)} {what}, left out: {shown}")


def complain_of_path(path: str, error: str) -> None:
    """Print the error of a file on stderr, with its path if the error does not name it."""
    path = printable(path)
    complain(error if path in error else f"{path}: {error}")


def printable(path: str) -> str:
    """Return a path as any terminal can show it, though file names may hold bytes that are no text."""
    return os.fsencode(path).decode("utf-8", "replace")


def print_rows(title: str, rows: list[dict[str, Any]], *, as_json: object = None) -> None:
    """Print records as a table with a column for each of their keys, or `as_json` in its place where it is given."""
    if as_json is not None:
        print(json.dumps(as_json))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        table.add_column(key.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row.values()))
    wide_console().print(table)


def wide_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for long rows in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def cell(value: Any) -> str:
    """Return one value of a table as text."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case dict():
            return " / ".join(map(cell, value.values()))
        case None:
            return "-"
        case _:
            return str(value)
