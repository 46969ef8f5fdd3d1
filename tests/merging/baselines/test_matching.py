"""ToMe, PiToMe, drop-then-merge and DPC-KNN: parity with plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sttm.merging.tokens import Tokens
from tests.merging.helpers import (
    B,
    C,
    Clip,
    H,
    S,
    Slots,
    T,
    W,
    by_size,
    check_parity,
    cosine,
    every_size,
    reducer,
    tokens,
    unit,
)

Edges = Callable[[list[list[float]], int], list[tuple[int, int]]]
Cue = list[list[list[float]]]


def in_rounds(module: Any, clip: Clip, edges: Edges, cue: Cue | None) -> list[Slots]:
    """Merge along the edges (from, to) that a rule finds among features for a number of merges, until enough did.

    The features are the keys, or where there are none the tokens, each normalised.
    """
    found = []
    for number, window in enumerate(clip):
        # A token: (features, size, whom it is made of).
        features = [list(x) for x, _, _ in window] if cue is None else cue[number]
        left = [(features[i], size, [i]) for i, (_, size, _) in enumerate(window)]
        while len(left) > module.tokens:
            looks = [unit(x) if cue is None else x for x, _, _ in left]
            gone = edges(looks, min(len(left) - module.tokens, len(left) // 2))
            for b in range(len(left)):
                joined = [left[b]] + [left[a] for a, partner in gone if partner == b]
                size = sum(j[1] for j in joined)
                mean = [sum(j[1] * j[0][c] for j in joined) / size for c in range(len(left[b][0]))]
                left[b] = (mean, size, [i for j in joined for i in j[2]])
            left = [token for i, token in enumerate(left) if i not in [a for a, _ in gone]]
        found.append(by_size(window, [members for _, _, members in left]))
    return found


def naive_tome(
    module: Any, clip: Clip, prefix: list[float] | None, cue: Cue | None = None, grid: tuple[int, int] | None = None
) -> list[Slots]:
    def is_even(number: int, tokens: int) -> bool:
        if grid is None or tokens < len(clip[0]):  # a later round
            return number % 2 == 0
        t, y, x = number // S, number % S // grid[1], number % grid[1]
        return (t + y + x) % 2 == 0

    def edges(x: list[list[float]], merges: int) -> list[tuple[int, int]]:
        even = [i for i in range(len(x)) if is_even(i, len(x))]
        scored = []
        for a in even:
            scores = {b: cosine(x[a], x[b]) for b in range(len(x)) if b not in even}
            partner = max(scores, key=lambda b: scores[b])
            scored.append((scores[partner], a, partner))
        return [(a, partner) for _, a, partner in sorted(scored, reverse=True)[:merges]]

    return in_rounds(module, clip, edges, cue)


def naive_pitome(module: Any, clip: Clip, prefix: list[float] | None, cue: Cue | None = None) -> list[Slots]:
    margin = 0.9 - 0.9 * module.depth

    def energy(x: list[list[float]], i: int) -> float:
        similar = [cosine(x[i], other) for other in x]
        return sum(s if s >= margin else math.exp(s - margin) - 1 for s in similar) / len(x)

    def edges(x: list[list[float]], merges: int) -> list[tuple[int, int]]:
        order = sorted(range(len(x)), key=lambda i: -energy(x, i))[: 2 * merges]
        return [(a, max(order[1::2], key=lambda b: cosine(x[a], x[b]))) for a in order[::2]]

    return in_rounds(module, clip, edges, cue)


def naive_dpcknn(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    distances = [[[math.dist(unit(v), unit(w)) / math.sqrt(C) for w, *_ in x] for v, *_ in x] for x in clip]
    greatest = max(distance for window in distances for row in window for distance in row)
    for window, apart in zip(clip, distances, strict=True):
        n = range(len(window))
        # The token itself, at distance 0, is one of its five nearest.
        density = [math.exp(-sum(distance**2 for distance in sorted(apart[i])[:5]) / 5) for i in n]
        score = []
        for i in n:
            denser = [apart[i][j] for j in n if density[j] > density[i]]
            score.append(density[i] * (min(denser) if denser else greatest))
        centres = sorted(n, key=lambda i: -score[i])[: module.tokens]
        groups: list[list[int]] = [[] for _ in centres]
        for i in n:
            groups[min(range(len(centres)), key=lambda k: apart[i][centres[k]])].append(i)
        found.append(by_size(window, groups))
    return found


RULES = {"tome": naive_tome, "pitome": naive_pitome, "dpcknn": naive_dpcknn}


@every_size
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_parity_with_plain_loops(name: str, frames: int, slots: int, seed: int) -> None:
    check_parity(reducer(name, frames, slots), RULES[name], replace(tokens(seed, prefix=seed == 0), cue_BTSD=None))


@every_size
@pytest.mark.parametrize("name", ["tome", "pitome"])
def test_parity_by_keys(name: str, frames: int, slots: int) -> None:
    check_parity(reducer(name, frames, slots, depth=0.25), RULES[name], tokens())


def test_drop_merge_drops_as_random_drop_and_merges_as_tome() -> None:
    """Before a block, where it has no keys to read, it drops; inside a later one it merges what is left."""
    given = tokens()
    for training in (False, True):
        answers = []
        for name in ("random", "drop_merge"):
            torch.manual_seed(0)
            module = reducer(name, 1, 30).train(training)
            torch.manual_seed(1)
            answers.append(module(given))
        (one, kept), (other, same) = answers
        assert torch.equal(one.x_BTSC, other.x_BTSC) and torch.equal(kept.assignment, same.assignment)
    check_parity(reducer("drop_merge", 1, 30, cue_dim=C), naive_tome, given)


@every_size
@pytest.mark.parametrize(("height", "width"), [(H, W), (W, H), (10, 2), (1, 20)])
def test_a_full_grid_is_split_like_a_chess_board(frames: int, slots: int, height: int, width: int) -> None:
    given = replace(tokens(), grid=(height, width))

    def rule(module: Any, clip: Clip, prefix: list[float] | None, cue: Cue) -> list[Slots]:
        return naive_tome(module, clip, prefix, cue, grid=(height, width))

    check_parity(reducer("tome", frames, slots), rule, given)


@pytest.mark.parametrize(("name", "protected"), [("pitome", True), ("tome", False)])
def test_pitome_protects_a_token_unlike_the_rest(name: str, protected: bool) -> None:
    given = tokens()
    x = given.x_BTSC[:, :1, :1] + 0.01 * given.x_BTSC
    x[:, :, 4] = -x[:, :, 4]
    _, who = reducer(name, T, S // 2)(Tokens(x, given.size_BTS, given.position_BTS3))
    for b in range(B):
        slots = who.assignment[b].tolist()
        assert all((slots.count(slots[frame * S + 4]) == 1) == protected for frame in range(T))
