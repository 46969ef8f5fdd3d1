"""EViT and STA: parity with plain loops."""

from __future__ import annotations

from typing import Any

import pytest

import sttm
from sttm.merging.tokens import Tokens
from tests.merging.helpers import (
    B,
    Clip,
    Rule,
    S,
    Slots,
    T,
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


RULES: dict[str, Rule] = {"evit": naive_evit, "sta": naive_sta}


@every_size
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_parity_with_plain_loops(name: str, frames: int, slots: int, seed: int) -> None:
    check_parity(reducer(name, frames, slots), RULES[name], tokens(seed, prefix=seed == 0))


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
