"""What the user reads: tables and JSON on stdout, warnings and errors on stderr."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def complain(sentence: str) -> None:
    """Print a sentence on stderr."""
    print(f"sttm: {sentence}", file=sys.stderr)


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
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        table.add_column(key.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row.values()))
    wide_console().print(table)


def wide_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for long rows in a pipe."""
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
