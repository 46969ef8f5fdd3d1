"""ToMe, PiToMe, DPC-KNN, EViT and STA: parity with plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

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
    cosine,
    dot,
    every_size,
    reducer,
    softmax,
    tokens,
    unit,
)

Edges = Callable[[list[list[float]], int], list[tuple[int, int]]]


def in_rounds(module: Any, clip: Clip, edges: Edges) -> list[Slots]:
    """Merge along the edges (from, to) that a rule finds among features for a number of merges, until enough did."""
    found = []
    for window in clip:
        # A token: (features, size, whom it is made of).
        left = [(list(x), size, [i]) for i, (x, size, _) in enumerate(window)]
        while len(left) > module.tokens:
            gone = edges([unit(x) for x, _, _ in left], min(len(left) - module.tokens, len(left) // 2))
            for b in range(len(left)):
                joined = [left[b]] + [left[a] for a, partner in gone if partner == b]
                size = sum(j[1] for j in joined)
                mean = [sum(j[1] * j[0][c] for j in joined) / size for c in range(C)]
                left[b] = (mean, size, [i for j in joined for i in j[2]])
            left = [token for i, token in enumerate(left) if i not in [a for a, _ in gone]]
        found.append(by_size(window, [members for _, _, members in left]))
    return found


def naive_tome(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    def edges(x: list[list[float]], merges: int) -> list[tuple[int, int]]:
        scored = []
        for a in range(0, len(x), 2):
            scores = {b: cosine(x[a], x[b]) for b in range(1, len(x), 2)}
            partner = max(scores, key=lambda b: scores[b])
            scored.append((scores[partner], a, partner))
        return [(a, partner) for _, a, partner in sorted(scored, reverse=True)[:merges]]

    return in_rounds(module, clip, edges)


def naive_pitome(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    def energy(x: list[list[float]], i: int) -> float:
        similar = [cosine(x[i], other) for other in x]
        return sum(s if s >= 0.45 else math.exp(s - 0.45) - 1 for s in similar) / len(x)

    def edges(x: list[list[float]], merges: int) -> list[tuple[int, int]]:
        order = sorted(range(len(x)), key=lambda i: -energy(x, i))[: 2 * merges]
        return [(a, max(order[1::2], key=lambda b: cosine(x[a], x[b]))) for a in order[::2]]

    return in_rounds(module, clip, edges)


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


def naive_evit(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        x = [unit(v) for v, _, _ in window]
        query = [sum(v[c] for v in x) / len(x) for c in range(C)] if prefix is None else unit(prefix)
        attention = softmax([dot(query, v) / math.sqrt(C) for v in x])
        stay = sorted(sorted(range(len(x)), key=lambda i: -attention[i])[: module.tokens - 1])
        rest = {i: attention[i] for i in range(len(x)) if i not in stay}
        fused = {i: a / sum(rest.values()) for i, a in rest.items()}
        found.append([*alone(stay), (fused, 1.0)])
    return found


def naive_sta(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found: list[Slots] = []
    stay: list[int] = []
    score: dict[int, float] = {}
    for f, window in enumerate(clip):
        x, n = [unit(v) for v, _, _ in window], range(len(window))
        if f == 0:
            goes = []  # the even tokens first, the most alike first; then the odd ones
            for parity in (0, 1):
                of, others = range(parity, len(x), 2), range(1 - parity, len(x), 2)
                alike = {i: max(cosine(x[i], x[j]) for j in others) for i in of}
                goes += [i for _, i in sorted((-alike[i], i) for i in of)]
            stay = sorted(set(n) - set(goes[: len(x) - module.tokens]))
            score = dict.fromkeys(n, 1.0)  # all tokens of the first frame pass on what they are
        else:
            seen = [0.0 for _ in n]
            for j in score:
                before = unit(clip[f - 1][j][0])
                for i, share in enumerate(softmax([cosine(v, before) for v in x])):
                    seen[i] += share * score[j]
            active = [sum(abs(a) for a in v) for v, _, _ in window]
            least, most = min(active), max(active)
            redundant = [seen[i] * (1 - (active[i] - least) / (most - least)) for i in n]
            stay = sorted(i for _, i in sorted(zip(redundant, n, strict=True))[: module.tokens])
            score = {i: seen[i] / sum(seen[j] for j in stay) for i in stay}
        found.append(alone(stay))
    return found


RULES = {"tome": naive_tome, "pitome": naive_pitome, "dpcknn": naive_dpcknn, "evit": naive_evit, "sta": naive_sta}


@every_size
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_parity_with_plain_loops(name: str, frames: int, slots: int, seed: int) -> None:
    check_parity(reducer(name, frames, slots), RULES[name], tokens(seed, prefix=seed == 0))


def test_sta_hands_scores_on_from_frame_to_frame() -> None:
    """Where all tokens but one are equally active, what was seen before is all that counts."""
    given = tokens()
    x = given.x_BTSC / given.x_BTSC.abs().sum(-1, keepdim=True)
    x[..., 0, :] *= 100
    module = reducer("sta", T, 6)
    _, who = module(Tokens(x, given.size_BTS, given.position_BTS3))
    for b in range(B):
        clip = [[(v, 1.0, [0.0] * 3) for v in frame] for frame in x[b].tolist()]
        stay = [next(iter(weights)) for window in naive_sta(module, clip, None) for weights, _ in window]
        assert (who.meta[b] % S).tolist() == stay


@pytest.mark.parametrize(("name", "protected"), [("pitome", True), ("tome", False)])
def test_pitome_protects_a_token_unlike_the_rest(name: str, protected: bool) -> None:
    given = tokens()
    x = given.x_BTSC[:, :1, :1] + 0.01 * given.x_BTSC
    x[:, :, 4] = -x[:, :, 4]
    _, who = reducer(name, T, S // 2)(Tokens(x, given.size_BTS, given.position_BTS3))
    for b in range(B):
        slots = who.assignment[b].tolist()
        assert all((slots.count(slots[frame * S + 4]) == 1) == protected for frame in range(T))
