"""The progress bar of every command; layers below report to it through a callback `advance`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """What a command hands to the layer below."""

    def __call__(self, done: int, total: int | None = None, /) -> None:
        """Report how many items were just done, and how many there are in all where only the layer below knows."""


@contextmanager
def progress(what: str, total: int | None = None, *, shown: bool = True) -> Iterator[Advance]:
    """Draw a bar on stderr while inside, if `shown` and stderr is a terminal; yield what advances it."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not (shown and sys.stderr.isatty()),
        redirect_stdout=sys.stdout.isatty(),  # lines printed meanwhile go above the bar; a pipe is left alone
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int, total: int | None = None, /) -> None:
            bar.update(task, advance=done, total=total)

        yield advance
