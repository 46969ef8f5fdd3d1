"""Turns and quantiles."""

from functools import partial

import pytest
import torch

from sttm.benchmark.timing import in_turn, quantiles

CPU = torch.device("cpu")


def test_quantiles_are_named_from_low_to_high():
    assert quantiles([3, 1, 2]) == pytest.approx({"p10": 1.2, "p50": 2, "p90": 2.8})


@pytest.mark.parametrize(("turn", "order"), [(0, "abc"), (1, "bca"), (5, "cab")])
def test_each_turn_starts_with_another_run(turn, order):
    seen: list[str] = []

    def note(name):
        seen.append(name)
        return name.upper()

    seconds, results = in_turn([partial(note, name) for name in "abc"], turn, CPU)
    assert "".join(seen) == order and results == ["A", "B", "C"] and len(seconds) == 3 and min(seconds) >= 0
