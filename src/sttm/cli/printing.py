"""What the user sees: tables, JSON lines, bars and complaints."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def complain(sentence: str) -> None:
    print(f"sttm: {sentence}", file=sys.stderr)


def report_predictions(records: Iterable[Mapping[str, Any]], total: int, *, as_json: bool) -> int:
    """Print records as they come, errors and warnings on stderr too; the exit code."""
    failed = 0
    shown = sys.stderr.isatty() and not (as_json and sys.stdout.isatty())  # no bar through lines of JSON
    with progress(records, total, shown=shown) as watched:
        for record in watched:
            path, error = printable(record["path"]), record.get("error")
            for warning in record.get("warnings", ()):
                complain(f"warning: {path}: {warning}")
            if error is not None:
                failed += 1
                complain(error if path in error else f"{path}: {error}")
            if as_json:
                print(json.dumps(record), flush=True)
            elif error is None:
                guesses = [f"{guess['score']:8.1%}  {guess['label']}" for guess in record["predictions"]]
                print(path, *guesses, sep="\n", flush=True)
    if failed:
        complain(f"{failed} of {total} could not be classified.")
    return int(failed > 0)


@contextmanager
def progress(items: Iterable[Any], total: int, *, shown: bool) -> Iterator[Iterable[Any]]:
    """Draw a bar on stderr while the items are taken; stdout is left alone unless it is the same terminal."""
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console, same = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, disable=not shown, redirect_stdout=same) as bar:
        yield bar.track(items, total=total)


def printable(path: str) -> str:
    """A path as any terminal can show it, though file names may hold bytes that are no text."""
    return os.fsencode(path).decode("utf-8", "replace")


def print_rows(title: str, rows: list[dict[str, Any]], *, as_json: object = None) -> None:
    """Print records as a table with a column for each of their keys, or some JSON in its place."""
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
    """A console for tables: as wide as the terminal, or wide enough for long rows in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160)


def cell(value: Any) -> str:
    """One value of a table, as people write it."""
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
