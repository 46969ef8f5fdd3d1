"""Accuracy and confusion as counts, which are divided once, at the end.

Legend: B clips in a batch, K classes, b the highest-scoring few of them for one clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

#: Half the width of a 95 % interval of the normal distribution, in standard deviations.
Z95 = 1.959964


@dataclass(frozen=True)
class Accuracy:
    """Right answers among all answers, as counts, so that batches of any size add up."""

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
        """Return correct over total; nan where total is 0."""
        return self.correct / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share (Wilson's, which holds near 0 and 1 too)."""
        if not self.total:
            return 0.0, 1.0
        n, share = self.total, self.share
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, eq=False)
class Confusion:
    """The confusion matrix as counts of clips."""

    counts_KK: NDArray[np.int64]
    """A row for each true class, a column for each predicted class."""
    among_five: int = 0
    """Clips whose class was among the five with the highest scores."""

    @classmethod
    def of(cls, classes: int, truths: Sequence[int], best: Sequence[Sequence[int]]) -> Confusion:
        """Count some clips, given the class of each and the classes [b] that scored highest, the highest first."""
        counts_KK = np.zeros((classes, classes), dtype=np.int64)
        for truth, best_b in zip(truths, best, strict=True):
            counts_KK[truth, best_b[0]] += 1
        return cls(counts_KK, sum(truth in best_b[:5] for truth, best_b in zip(truths, best, strict=True)))

    @property
    def top1(self) -> Accuracy:
        return Accuracy(int(self.counts_KK.trace()), int(self.counts_KK.sum()))

    @property
    def top5(self) -> Accuracy:
        return Accuracy(self.among_five, int(self.counts_KK.sum()))

    @property
    def present(self) -> list[int]:
        """Return the classes that have clips."""
        return [int(number) for number in np.flatnonzero(self.counts_KK.sum(1))]

    @property
    def mean_class(self) -> float:
        """Return the mean of the classes' accuracies, over those that have clips; nan where none has."""
        shares = [self.of_class(number).share for number in self.present]
        return sum(shares) / len(shares) if shares else math.nan

    def of_class(self, number: int) -> Accuracy:
        return Accuracy(int(self.counts_KK[number, number]), int(self.counts_KK[number].sum()))

    def taken_for(self, number: int) -> tuple[int, int] | None:
        """Return the class that clips of this one were most often mistaken for, and how often; None if never."""
        others_K = self.counts_KK[number].copy()
        others_K[number] = 0
        return (int(others_K.argmax()), int(others_K.max())) if others_K.any() else None
