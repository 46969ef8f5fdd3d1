"""Random drop, frame drop and pooling: parity with plain loops, and what each promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sttm.merging import METHODS
from sttm.merging.tokens import Tokens
from tests.merging.helpers import (
    B,
    C,
    Clip,
    S,
    Slots,
    T,
    alone,
    by_size,
    check_parity,
    curve,
    every_size,
    reducer,
    tokens,
)


def naive_random(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        order = sorted(range(len(window)), key=lambda i: (window[i][2][0], curve(window[i][2])))
        M = module.tokens
        found.append(alone(sorted(order[((2 * i + 1) * len(order)) // (2 * M)] for i in range(M))))
    return found


def naive_frames(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    chosen = [((2 * i + 1) * T) // (2 * module.frames) for i in range(module.frames)]
    return [alone([t * S + s for t in chosen for s in range(S)])]


def naive_pool(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        order = sorted(range(len(window)), key=lambda i: (curve(window[i][2]), window[i][2][0]))
        groups: list[list[int]] = [[] for _ in range(module.tokens)]
        for rank, i in enumerate(order):
            groups[rank * module.tokens // len(order)].append(i)
        found.append(by_size(window, groups))
    return found


RULES = {"random": naive_random, "frames": naive_frames, "pool": naive_pool}


@every_size
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_parity_with_plain_loops(name: str, frames: int, slots: int, seed: int) -> None:
    check_parity(reducer(name, frames, slots), RULES[name], tokens(seed, prefix=seed == 0))


def test_random_drop_is_random_in_training_and_regular_in_testing() -> None:
    module, given = reducer("random").train(), tokens()
    draws = {tuple(module(given)[1].meta.flatten().tolist()) for _ in range(5)}
    assert len(draws) == 5
    clips = next(iter(draws))
    assert clips[: len(clips) // B] != clips[len(clips) // B :]
    counts = torch.zeros(T * S)
    for _ in range(300):
        counts += torch.bincount(module(given)[1].meta.flatten(), minlength=T * S)
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    module.eval()
    assert torch.equal(module(given)[1].meta, module(tokens(5))[1].meta)
    regular = reducer("random", selector="stride").train()
    assert torch.equal(regular(given)[1].meta, module(given)[1].meta)


def test_pooling_is_ordinary_pooling_where_that_fits() -> None:
    x = torch.randn(1, 4, 64, C, generator=torch.Generator().manual_seed(0))
    merged, _ = METHODS["pool"](C, 2, 16, frames_in=4)(Tokens.of_grid(x, 8, 8))
    # [1 T S C] -> [1 C T H W] -> [1 C 2 4 4] -> [2 16 C]
    cubes = nn.functional.avg_pool3d(x.reshape(1, 4, 8, 8, C).permute(0, 4, 1, 2, 3), 2).flatten(3)[0].permute(1, 2, 0)
    for frame in range(2):
        order = [a[:, 0].argsort() for a in (merged.x_BTSC[0, frame], cubes[frame])]
        torch.testing.assert_close(merged.x_BTSC[0, frame][order[0]], cubes[frame][order[1]])
