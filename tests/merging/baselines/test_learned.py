"""PatchMerger and TokenLearner: parity with plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.merging.helpers import C, Clip, Slots, check_parity, dot, every_size, reducer, softmax, tokens, unit


def naive_queries(window: Any, scores: list[list[float]]) -> Slots:
    """Slots that pool by a softmax over the tokens; scores[m][i]."""
    total = sum(size for _, size, _ in window)
    return [(dict(enumerate(softmax(row))), total / len(scores)) for row in scores]


def naive_patchmerger(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    queries, gain = module.query.weight.tolist(), module.norm.weight.tolist()
    found = []
    for window in clip:
        normed = [[g * a for g, a in zip(gain, unit(v), strict=True)] for v, _, _ in window]
        found.append(naive_queries(window, [[dot(q, v) / math.sqrt(C) for v in normed] for q in queries]))
    return found


def naive_tokenlearner(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    weight, bias, maps = module.hidden.weight.tolist(), module.hidden.bias.tolist(), module.maps.weight.tolist()
    found = []
    for window in clip:
        hidden = []
        for v, _, _ in window:
            inner = [dot(row, unit(v)) + b for row, b in zip(weight, bias, strict=True)]
            hidden.append([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in inner])
        found.append(naive_queries(window, [[dot(row, h) for h in hidden] for row in maps]))
    return found


RULES = {"patchmerger": naive_patchmerger, "tokenlearner": naive_tokenlearner}


@every_size
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_parity_with_plain_loops(name: str, frames: int, slots: int, seed: int) -> None:
    check_parity(reducer(name, frames, slots), RULES[name], tokens(seed, prefix=seed == 0))
