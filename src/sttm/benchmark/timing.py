"""Timing of runs that are compared: each once in every turn, and the quantiles of what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the 10th percentile, the median and the 90th percentile of some values: {"p10", "p50", "p90"}."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), (10, 50, 90)).tolist()
    return {"p10": low, "p50": middle, "p90": high}


def in_turn(runs: Sequence[Callable[[], T]], turn: int, device: torch.device) -> tuple[list[float], list[T]]:
    """Call each run once, starting with another one each turn; return seconds and results in the order of `runs`.

    Runs that are compared share the load of the machine: a slow minute slows all of them, and none is always the
    first. On a GPU the clock stops when the last kernel of a run has ended.
    """
    seconds: dict[int, float] = {}
    results: dict[int, T] = {}
    for step in range(len(runs)):
        number = (turn + step) % len(runs)
        synchronize(device)
        started = time.perf_counter()
        results[number] = runs[number]()
        synchronize(device)
        seconds[number] = time.perf_counter() - started
    return [seconds[i] for i in range(len(runs))], [results[i] for i in range(len(runs))]


def synchronize(device: torch.device) -> None:
    """Wait for all kernels of a GPU; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
