"""Signals that ask a run to stop, and the figures that it logs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Stopped(Exception):  # noqa: N818 - not an error: the run did what it was asked to do
    """A signal (SIGTERM, Ctrl-C) stopped the run."""

    signal: int
    step: int
    checkpoint: Path | None
    """The checkpoint that was saved; None where a process had to stop alone, and the last one is what there is."""


@contextmanager
def listen(received: list[int]) -> Iterator[None]:
    """Collect SIGTERM and SIGINT in a list instead of ending the process, so that the current step can be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Meter:
    """Mean loss, speed and the share of time spent waiting for data, over the steps since the last record."""

    def __init__(self, every: int) -> None:
        self.every, self.losses = every, list[float]()
        self.waited, self.since = 0.0, time.perf_counter()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and add up the time that each took to arrive."""
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - began
            yield item

    def count(self, step: int, steps: int, loss: float, norm: float, lr: float, clips: int) -> dict[str, Any] | None:
        """Count a step; return a record every `every` steps and at the last one, otherwise None."""
        self.losses.append(loss)
        if step % self.every and step != steps:
            return None
        seconds = time.perf_counter() - self.since
        record = {
            "step": step,
            "steps": steps,
            "loss": sum(self.losses) / len(self.losses),
            "gradient_norm": norm,
            "lr": lr,
            "clips_per_s": len(self.losses) * clips / seconds,
            "waiting": self.waited / seconds,
        }
        self.losses, self.waited, self.since = [], 0.0, time.perf_counter()
        return record
