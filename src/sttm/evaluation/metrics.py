"""What is measured: answers counted until the last division, models timed turn by turn, and on what machine.

Legend: B clips in a batch, K classes, b the best few of them for one clip.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Half the width of a 95 % interval of the normal distribution, in standard deviations.
Z95 = 1.959964

T = TypeVar("T")


@dataclass(frozen=True)
class Accuracy:
    """Right answers among all answers, as counts: batches of any size add up without weights."""

    correct: int = 0
    total: int = 0

    @classmethod
    def of(cls, logits_BK: Tensor, labels_B: Tensor) -> Accuracy:
        """Count the clips of a batch whose best class is their label."""
        return cls(int((logits_BK.argmax(-1) == labels_B).sum()), len(labels_B))

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.correct + other.correct, self.total + other.total)

    @property
    def share(self) -> float:
        """Correct over total; nan where nothing was asked."""
        return self.correct / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval for the share among all such clips (Wilson's, which holds near 0 and 1 too)."""
        if not self.total:
            return 0.0, 1.0
        n, share = self.total, self.share
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which class was taken for which: counts of clips, that add up over batches and processes."""

    counts_KK: NDArray[np.int64]
    """One line for each class that clips have, one column for each that they were taken for."""
    among_five: int = 0
    """Clips whose class was among the five best."""

    @classmethod
    def of(cls, classes: int, truths: Sequence[int], best: Sequence[Sequence[int]]) -> Confusion:
        """Count some clips: the class of each, and the classes [b] that scored highest, the best one first."""
        counts_KK = np.zeros((classes, classes), dtype=np.int64)
        for truth, best_b in zip(truths, best, strict=True):
            counts_KK[truth, best_b[0]] += 1
        return cls(counts_KK, sum(truth in best_b[:5] for truth, best_b in zip(truths, best, strict=True)))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts_KK + other.counts_KK, self.among_five + other.among_five)

    @property
    def top1(self) -> Accuracy:
        return Accuracy(int(self.counts_KK.trace()), int(self.counts_KK.sum()))

    @property
    def top5(self) -> Accuracy:
        return Accuracy(self.among_five, int(self.counts_KK.sum()))

    @property
    def present(self) -> list[int]:
        """The classes that have clips."""
        return [int(number) for number in np.flatnonzero(self.counts_KK.sum(1))]

    @property
    def mean_class(self) -> float:
        """The mean of the classes' own accuracies, over those that have clips; nan where none has."""
        shares = [self.of_class(number).share for number in self.present]
        return sum(shares) / len(shares) if shares else math.nan

    def of_class(self, number: int) -> Accuracy:
        return Accuracy(int(self.counts_KK[number, number]), int(self.counts_KK[number].sum()))

    def taken_for(self, number: int) -> tuple[int, int] | None:
        """The other class that clips of this one were most often taken for, and how often; None if they never were."""
        others_K = self.counts_KK[number].copy()
        others_K[number] = 0
        return (int(others_K.argmax()), int(others_K.max())) if others_K.any() else None


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The median of some measurements, with the tenth below it and the tenth above: {"p10", "p50", "p90"}."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), (10, 50, 90)).tolist()
    return {"p10": low, "p50": middle, "p90": high}


def in_turn(runs: Sequence[Callable[[], T]], turn: int, device: torch.device) -> tuple[list[float], list[T]]:
    """Run each once, starting with another one each turn; seconds and results in the order of `runs`.

    Runs that are compared share what the machine does meanwhile: a slow minute slows all of them, and none is
    always the first. On a GPU each ends when its last kernel has.
    """
    seconds: dict[int, float] = {}
    results: dict[int, T] = {}
    for step in range(len(runs)):
        number = (turn + step) % len(runs)
        _finish(device)
        started = time.perf_counter()
        results[number] = runs[number]()
        _finish(device)
        seconds[number] = time.perf_counter() - started
    return [seconds[i] for i in range(len(runs))], [results[i] for i in range(len(runs))]


def machine(device: torch.device) -> str:
    """Where a timing comes from, in words: GPU, processor, threads, torch."""
    threads = torch.get_num_threads()
    parts = [f"{_processor()} ({threads} thread{'s' * (threads != 1)} of {os.cpu_count()})"]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    """The name of the processor; Python's own answer is empty on many Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
