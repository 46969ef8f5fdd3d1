"""EViT, STA and RLT: parity with plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sttm
from sttm.merging.tokens import Tokens
from tests.merging.helpers import (
    B,
    C,
    Clip,
    H,
    Rule,
    S,
    Slots,
    T,
    W,
    alone,
    check_parity,
    cosine,
    every_size,
    reducer,
    softmax,
    tokens,
    unit,
)


def naive_evit(module: Any, clip: Clip, prefix: list[float] | None, cue: list[list[list[float]]]) -> list[Slots]:
    found = []
    for attentions in cue:
        attention = [values[0] for values in attentions]
        stay = sorted(sorted(range(len(attention)), key=lambda i: -attention[i])[: module.tokens - 1])
        rest = {i: a for i, a in enumerate(attention) if i not in stay}
        found.append([*alone(stay), ({i: a / sum(rest.values()) for i, a in rest.items()}, 1.0)])
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


def naive_rlt(
    module: Any, clip: Clip, prefix: list[float] | None, cue: list[list[list[float]]] | None = None
) -> list[Slots]:
    found = []
    for number, window in enumerate(clip):
        frames = T // len(clip)
        first = [list(v) if cue is None else cue[number][i][: len(v) // 2] for i, (v, _, _) in enumerate(window)]
        last = [list(v) if cue is None else cue[number][i][len(v) // 2 :] for i, (v, _, _) in enumerate(window)]
        change = [
            sum(abs(a - b) for a, b in zip(last[i], first[i - S], strict=True)) if i >= S else 0.0
            for i in range(frames * S)
        ]
        # The first frame before all others, its own order that of the change that follows.
        order = sorted(range(frames * S), key=lambda i: (i >= S, -change[i if i >= S else i + S]))
        kept = sorted(order[: module.tokens])
        slots: Slots = []
        for token in kept:
            run = [token]
            while run[-1] + S < frames * S and run[-1] + S not in kept:
                run.append(run[-1] + S)
            slots.append(({token: 1.0}, sum(window[i][1] for i in run)))
        found.append(slots)
    return found


RULES: dict[str, Rule] = {"evit": naive_evit, "sta": naive_sta}


@every_size
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_parity_with_plain_loops(name: str, frames: int, slots: int, seed: int) -> None:
    check_parity(reducer(name, frames, slots), RULES[name], tokens(seed, prefix=seed == 0))


@pytest.mark.parametrize(("frames", "slots"), [(2, 7), (2, 23), (1, 13), (1, 30)])
@pytest.mark.parametrize("with_pixels", [True, False])
def test_rlt_keeps_what_changed(frames: int, slots: int, with_pixels: bool) -> None:
    given = tokens()
    given.cue_BTSD = given.cue_BTSD if with_pixels else None
    module = reducer("rlt", frames, slots)
    _, who = module(given)
    assert who.meta is not None
    for b in range(B):
        x, size = given.x_BTSC[b].reshape(frames, -1, C).tolist(), given.size_BTS[b].reshape(frames, -1).tolist()
        clip = [list(zip(*window, [[0.0] * 3] * len(window[0]), strict=True)) for window in zip(x, size, strict=True)]
        cue = [given.cue_BTSD[b].reshape(frames, -1, C).tolist()] if given.cue_BTSD is not None else []
        expected = naive_rlt(module, clip, None, *cue)
        kept = [f * T * S // frames + next(iter(w)) for f, slots in enumerate(expected) for w, _ in slots]
        assert who.meta[b].tolist() == kept
        assert who.size[b].tolist() == [size for slots in expected for _, size in slots]


def test_rlt_keeps_a_still_place_once_and_a_moving_one_in_every_frame() -> None:
    pixels = torch.zeros(1, T, S, 2, dtype=torch.float64)
    pixels[0, :, 3] = torch.arange(2.0 * T).reshape(T, 2)
    given = Tokens.of_grid(torch.randn(1, T, S, C, dtype=torch.float64), H, W)
    given.cue_BTSD = pixels
    _, who = reducer("rlt", 1, S + T - 1)(given)
    assert who.meta is not None
    assert who.meta[0].tolist() == [*range(S), *(t * S + 3 for t in range(1, T))]
    assert who.size[0].tolist() == [*(1 if s == 3 else T for s in range(S)), *[1] * (T - 1)]
    assert who.assignment[0].tolist() == [S + t - 1 if s == 3 and t else s for t in range(T) for s in range(S)]


def test_evit_without_attention_is_one_sentence() -> None:
    given = tokens()
    with pytest.raises(sttm.SttmError, match=r"needs the attention.*cue_BTSD"):
        reducer("evit")(Tokens(given.x_BTSC, given.size_BTS, given.position_BTS3))


def test_evit_without_any_attention_on_the_rest_fuses_it_evenly() -> None:
    given = tokens()
    assert given.cue_BTSD is not None
    given.cue_BTSD = given.cue_BTSD * (given.cue_BTSD > 2)
    merged, who = reducer("evit", 1, 3)(given)
    assert merged.x_BTSC.isfinite().all()
    rest = who.weight[who.assignment == 2]
    assert rest.min() == rest.max() == 1 / (T * S - 2)


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
