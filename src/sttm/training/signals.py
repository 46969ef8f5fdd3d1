"""Watching a run: signals that ask it to stop, and how fast it goes."""

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
class Stopped(Exception):  # noqa: N818 - not an error: a run that did as it was told
    """A run that was told to stop (SIGTERM, Ctrl-C) and saved what it had."""

    signal: int
    step: int
    checkpoint: Path


@contextmanager
def listen(told: list[int]) -> Iterator[None]:
    """Writes down SIGTERM and SIGINT instead of dying of them, so that the step under way can end and be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda received, frame: told.append(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Meter:
    """Loss, speed and the share of time spent waiting for data, over the steps since the last record."""

    def __init__(self, every: int) -> None:
        self.every, self.losses = every, list[float]()
        self.waited, self.since = 0.0, time.perf_counter()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items on, and counts the time that they kept one waiting."""
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
        """Counts a step; every so many steps, and at the last, a record of them."""
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
