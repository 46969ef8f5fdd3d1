"""Accuracy and confusion against naive recounts; sums of accuracies are the whole."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sttm.evaluation.metrics import Z95, Accuracy, Confusion

CLASSES = 7
guesses = st.permutations(range(CLASSES)).map(lambda order: tuple(order[:5]))
clips = st.lists(st.tuples(st.integers(0, CLASSES - 1), guesses), max_size=40)


def count(some: list[tuple[int, tuple[int, ...]]]) -> Confusion:
    return Confusion.of(CLASSES, [truth for truth, _ in some], [best for _, best in some])


@given(clips)
def test_every_figure_is_a_naive_recount(some):
    found = count(some)
    right = [truth == best[0] for truth, best in some]
    assert found.top1 == Accuracy(sum(right), len(some))
    assert found.top5 == Accuracy(sum(truth in best for truth, best in some), len(some))
    by_class = {number: [good for good, (truth, _) in zip(right, some, strict=True) if truth == number]
                for number in range(CLASSES)}  # fmt: skip
    shares = [sum(goods) / len(goods) for goods in by_class.values() if goods]
    assert found.present == [number for number, goods in by_class.items() if goods]
    assert math.isclose(found.mean_class, sum(shares) / len(shares)) if shares else math.isnan(found.mean_class)
    for number, goods in by_class.items():
        assert found.of_class(number) == Accuracy(sum(goods), len(goods))
        mistakes = Counter(best[0] for truth, best in some if truth == number != best[0])
        mistake = found.taken_for(number)
        assert (mistake is None) == (not mistakes)
        if mistake is not None:
            assert mistake[1] == mistakes[mistake[0]] == max(mistakes.values())


def test_the_sixth_guess_is_not_among_five():
    assert Confusion.of(7, [6], [(0, 1, 2, 3, 4, 6)]).top5 == Accuracy(0, 1)


def test_accuracy_adds_up_over_ragged_batches():
    logits_BK = torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    whole = Accuracy.of(logits_BK[:2], torch.tensor([1, 1])) + Accuracy.of(logits_BK[2:], torch.tensor([1]))
    assert whole == Accuracy(2, 3) and whole.share == 2 / 3
    assert math.isnan(Accuracy().share) and Accuracy().interval == (0, 1)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_ends_where_the_share_is_just_believable(counts):
    accuracy = Accuracy(*counts)
    low, high = accuracy.interval
    assert 0 <= low <= accuracy.share + 1e-9 and accuracy.share - 1e-9 <= high <= 1
    for end in (low, high):  # Wilson's definition: the share is Z95 standard deviations of `end` away from it
        distance = Z95 * math.sqrt(end * (1 - end) / accuracy.total)
        assert abs(accuracy.share - end) == pytest.approx(distance, abs=1e-6)
