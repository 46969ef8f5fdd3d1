"""Helpers of the tests of merging: tokens on a small grid, reducers of any method, and parity with plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sttm.merging import METHODS, spec_of
from sttm.merging.motion import GAIN
from sttm.merging.reducer import TokenReducer
from sttm.merging.tokens import Tokens

#: Methods that drop tokens, and those whose slots stand for other numbers of tokens than went into them.
DROPPING = {"random", "frames", "sta", "rlt", "drop_merge"}
UNSIZED = DROPPING - {"rlt"} | {"evit"}
B, T, H, W, C = 2, 4, 4, 5, 12
S = H * W

#: Every method, with and without parameters; those of a method that has none of its own are the motion feature's.
MODES = [
    (name, learned)
    for name in METHODS
    for learned in ((True,) if spec_of(name).training == "required" else (False, True))
]

every_mode = pytest.mark.parametrize(("name", "learned"), MODES)
every_method = pytest.mark.parametrize("name", METHODS)


def reducer(name: str, frames: int = 2, slots: int = 7, **changes: Any) -> Any:
    """Return a reducer for the tokens of `tokens`, in float64, its learned parts away from where they start."""
    options: dict[str, Any] = dict(frames_in=T, tokens_in=S, learned=spec_of(name).training == "required") | changes
    options.setdefault("motion", options["learned"] and spec_of(name).training != "required")
    frames, slots = (3, S) if spec_of(name).whole_frames else (frames, slots)
    torch.manual_seed(0)
    module = METHODS[name](C, frames, slots, **options).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        if module.motion is not None:
            module.motion.map.weight.div_(GAIN)  # as it is in training: what it adds is as large as the tokens
    return module


def tokens(seed: int = 0, dtype: torch.dtype = torch.float64, prefix: bool = True) -> Tokens:
    """Return tokens of uneven sizes, as an earlier merger leaves them, with a cue."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, S, C, generator=make, dtype=torch.float64).to(dtype)
    plain = Tokens.of_grid(x, H, W, torch.randn(B, 1, C, generator=make).to(dtype) if prefix else None)
    size = torch.randint(1, 5, (B, T, S), generator=make).double()
    return cued(Tokens(x, size, plain.position_BTS3, plain.prefix_BPC))


def cued(given: Tokens) -> Tokens:
    """Return tokens with a cue, for methods that read more than the tokens: random, positive, as wide as they are."""
    cue = torch.rand(given.x_BTSC.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return replace(given, cue_BTSD=cue.to(given.x_BTSC))


# --- plain loops: for one clip, windows of tokens -> for each window its slots, as {token: weight}, and sizes

Slots = list[tuple[dict[int, float], float]]
Clip = list[list[tuple[list[float], float, list[float]]]]  # window, token: (features, size, position)
#: module, clip, prefix token, and the cue of each token of each window -> the slots of each window
Rule = Callable[..., list[Slots]]


def unit(v: list[float]) -> list[float]:
    """Mean 0, variance 1, as a layer norm."""
    mean = sum(v) / len(v)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in v) / len(v) + 1e-5)
    return [(a - mean) / deviation for a in v]


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


def alone(indices: list[int]) -> Slots:
    return [({i: 1.0}, 1.0) for i in indices]


def by_size(window: Any, groups: list[list[int]]) -> Slots:
    masses = [sum(window[i][1] for i in group) for group in groups]
    return [({i: window[i][1] / mass for i in g}, mass) for g, mass in zip(groups, masses, strict=True)]


def cell(coordinate: Any) -> int:
    """The cell of 64 along one axis; it ends at no fraction that averages of grid positions have."""
    return math.floor(float(coordinate + 1) / 2 * 63 + 0.618)


def curve(position: list[float]) -> int:
    y, x = (cell(v) for v in position[1:])
    return int("".join(f"{(y >> b) & 1}{(x >> b) & 1}" for b in reversed(range(6))), 2)


every_size = pytest.mark.parametrize(("frames", "slots"), [(4, 13), (2, 7), (2, 23), (1, 30)])


def check_parity(module: TokenReducer, rule: Rule, given: Tokens) -> None:
    """Compare slots, sizes, positions and assignment with those of a version in plain loops."""
    merged, who = module(given)
    windows = module.windows
    for b in range(B):
        columns = given.x_BTSC[b].reshape(windows, -1, C), given.size_BTS[b].reshape(windows, -1)
        rows = [column.tolist() for column in (*columns, given.position_BTS3[b].reshape(windows, -1, 3))]
        clip = [list(zip(*window, strict=True)) for window in zip(*rows, strict=True)]
        prefix = None if given.prefix_BPC is None else given.prefix_BPC[b, 0].tolist()
        more: tuple[Any, ...] = ()
        if given.cue_BTSD is not None and spec_of(module.name).reads != "tokens":
            more = (given.cue_BTSD[b].reshape(windows, T * S // windows, -1).tolist(),)
        slots_of_windows = rule(module, clip, prefix, *more)
        found = [(window, *slot) for window, s in zip(clip, slots_of_windows, strict=True) for slot in s]
        assert len(found) == module.frames * module.tokens
        x, size, place = (flat[b] for flat in (merged.x_BTSC, merged.size_BTS, merged.position_BTS3))
        for axis, out in ((0, x), (2, place)):
            expected = [
                [sum(w * window[i][axis][c] for i, w in weights.items()) for c in range(out.shape[-1])]
                for window, weights, _ in found
            ]
            torch.testing.assert_close(out.flatten(0, 1), torch.tensor(expected, dtype=out.dtype), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(size.flatten(), torch.tensor([slot[2] for slot in found], dtype=size.dtype))
        # Who went where: the slot that has the largest share of a token; -1 for one that is in none.
        length = T * S // windows
        for token in range(T * S):
            slots_of_window = found[token // length * len(found) // windows :][: len(found) // windows]
            shares = [weights.get(token % length, 0.0) for _, weights, _ in slots_of_window]
            best = token // length * len(found) // windows + shares.index(max(shares))
            assert who.assignment[b, token] == (best if max(shares) > 0 else -1)
