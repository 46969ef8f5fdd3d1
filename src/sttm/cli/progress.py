"""The progress bar of every command; layers below report to it through a callback `advance`.

rich is imported when a bar is made, so that `sttm --help` answers at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from sttm.cli.printing import is_quiet

PERIOD = 600.0
"""Seconds over which the rate is averaged; a step of training may take minutes."""


class Advance(Protocol):
    """What takes the progress of a command."""

    def __call__(self, done: int, total: int | None = None, /, *, note: str = "") -> None:
        """Count `done` more items, of `total` where only the layer below knows; `note` stands beside them."""


@contextmanager
def progress(what: str, total: int | None = None, *, shown: bool = True) -> Iterator[Advance]:
    """Draw a bar on stderr while inside, with rate and time left; yield what advances it.

    It is drawn only if `shown` and stderr is a terminal, without --quiet, and by the first process of torchrun.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    after = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(
        *(TextColumn(what), BarColumn(), MofNCompleteColumn(), *after),
        console=Console(stderr=True),
        transient=True,
        disable=not shown or not sys.stderr.isatty() or is_quiet() or os.environ.get("RANK", "0") != "0",
        redirect_stdout=sys.stdout.isatty(),  # lines printed meanwhile go above the bar; a pipe is left alone
        speed_estimate_period=PERIOD,
    ) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def advance(done: int, total: int | None = None, /, *, note: str = "") -> None:
            bar.update(task, advance=done, total=total, note=note)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.3g}/s" if speed else "")

        yield advance
