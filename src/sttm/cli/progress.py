"""The progress bar of every command; layers below report to it through a callback `advance`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(what: str, total: int | None = None, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Draw a bar on stderr while inside, if `shown` and stderr is a terminal; yield what advances it.

    That takes how many items were just done, and how many there are in all where only the layer below knows.
    """
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
