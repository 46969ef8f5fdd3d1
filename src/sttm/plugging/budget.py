"""Multiply-adds of a model at given token counts, and the schedule of mergers for a compute target.

A multiply-add is one term of a matrix product or convolution; papers call them "GFLOPs". Norms, activations, softmax,
sorting and other work in proportion to the tokens alone are not counted, here as in those papers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import nn

from sttm.backbones.protocol import Backbone, ClipShape
from sttm.errors import SttmError
from sttm.merging import METHODS, WHOLE_CLIP, habits_of, method_named
from sttm.merging.merger import TokenMerger
from sttm.merging.rivals import Rival

#: A plan ends at most this far below the compute that was asked for.
TOLERANCE = 0.01
#: Fewer than this share of the tokens left by one merger, and the schedule merges earlier instead.
GENTLE = 0.4


@dataclass(frozen=True)
class MergerPlan:
    """One merger: before which block (counted from 0), and the grids before and after it."""

    layer: int
    frames_before: int
    tokens_before: int
    frames: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What `sttm.apply` does to a model: `print(plan)` is a table.

    Attributes:
        compute: multiply-adds after over before, those of the mergers included.
        macs_before, macs_after: multiply-adds of one clip.
        mergers: one MergerPlan each, in order.
        method, learned, finder: what the mergers are.
        clip_shape: (frames, channels, height, width) of the clips that were counted.
    """

    compute: float
    macs_before: int
    macs_after: int
    mergers: tuple[MergerPlan, ...]
    method: str
    learned: bool
    clip_shape: ClipShape
    finder: str | None = None
    family: str = ""

    def __str__(self) -> str:
        mode = "learned" if self.learned else "off the shelf"
        lines = [
            f"{self.method} ({mode}) on {self.family}: {self.macs_before / 1e9:.3f} -> {self.macs_after / 1e9:.3f} "
            f"GMACs a clip, compute {self.compute:.3f}"
        ]
        if not self.mergers:
            return lines[0] + "; nothing to merge"
        lines.append(f"{'before block':>12}  {'frames x tokens':>22}  {'tokens':>14}  {'kept':>5}")
        for m in self.mergers:
            before, after = m.frames_before * m.tokens_before, m.frames * m.tokens
            grids = f"{m.frames_before} x {m.tokens_before} -> {m.frames} x {m.tokens}"
            lines.append(f"{m.layer:>12}  {grids:>22}  {f'{before} -> {after}':>14}  {after / before:>5.0%}")
        return "\n".join(lines)


def build_merger(plan: Plan, merger: MergerPlan, width: int) -> TokenMerger | Rival:
    """The module of one planned merger."""
    options: dict[str, Any] = {} if plan.finder is None else {"finder": plan.finder}
    return method_named(plan.method)(
        width, merger.frames, merger.tokens, frames_in=merger.frames_before, learned=plan.learned, **options
    )


def count_macs(backbone: Backbone, model: nn.Module, plan: Plan, mergers: Sequence[MergerPlan]) -> int:
    """Multiply-adds of one clip through a model with these mergers."""
    grid = backbone.grid(model, plan.clip_shape)
    frames, tokens, inner = grid.frames, grid.tokens, 0
    waiting = list(mergers)
    for number in range(len(backbone.blocks(model))):
        while waiting and waiting[0].layer == number:
            merger = waiting.pop(0)
            with torch.device("meta"):
                inner += build_merger(plan, merger, backbone.width(model)).macs(frames, tokens)
            frames, tokens = merger.frames, merger.tokens
        inner += backbone.block_macs(model, grid, frames, tokens)
    return grid.sequences * inner + backbone.outer_macs(model, plan.clip_shape, frames, tokens)


def check_compute(compute: float) -> float:
    """A share of the plain model's multiply-adds, above 0 and at most 1."""
    if isinstance(compute, bool) or not isinstance(compute, (int, float)) or not 0 < compute <= 1:
        raise SttmError(
            f"compute={compute!r} is not a share of the plain model's multiply-adds; give a number above 0, up to 1"
        )
    return float(compute)


def make_plan(
    backbone: Backbone,
    model: nn.Module,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    clip_shape: ClipShape | None = None,
    finder: str | None = None,
) -> Plan:
    """The schedule that brings a model to `compute` of its multiply-adds, from below and within 0.01.

    Two mergers, a quarter and half way through the blocks, each leaving the same share of its tokens. The blocks before
    the first see every token, as they have to tell objects apart; two steps, so that what the first leaves is looked
    at again before it is merged further; no more than two, as every merger costs passes over the tokens that no
    multiply-add shows (results/speed.json has how close to the ideal this runs). Where so little is asked for that a
    merger would leave under 40 % of its tokens, both move towards the first block. The first merger joins two frames
    to a window, so that tokens fuse in space and in time; the second fuses in space within what the first left. This
    is a first choice, made for speed; what it does to accuracy against other schedules is yet to be measured.

    Rivals get the same two places, unless their papers have another habit (`sttm.merging.HABITS`): ToMe takes as many
    tokens before every block but the first, as long as that is at most half of what is there (the last may fall short);
    "frames" drops frames as early as it can.

    Raises:
        SttmError: if `compute` is no share, or below what the earliest possible merging can reach.
    """
    compute = check_compute(compute)
    reducer = method_named(method)
    if issubclass(reducer, Rival) and not reducer.needs_training:
        # Nothing to learn: the model trains around it, sizes weighing attention as they do off the shelf.
        learned = False
    clip_shape = _clip(backbone, model, clip_shape)
    if backbone.aligned and finder not in (None, "stride"):
        raise SttmError(
            f"{backbone.family} attends over time at each place, which needs finder='stride', not {finder!r}"
        )
    finder = "stride" if backbone.aligned and method in ("sttm", "random") else finder
    empty = Plan(1.0, 0, 0, (), method, learned, clip_shape, finder, backbone.family)
    before = count_macs(backbone, model, empty, ())
    if compute == 1:
        return _counted(empty, before, before, ())
    _check_method(backbone, model, empty)
    search = _Search(backbone, model, empty, before, compute)
    found = search.best()
    return _counted(empty, before, count_macs(backbone, model, empty, found), found)


def plain_macs(backbone: Backbone, model: nn.Module, clip_shape: ClipShape | None) -> int:
    """Multiply-adds of one clip through the model as it came."""
    empty = Plan(1.0, 0, 0, (), "sttm", False, _clip(backbone, model, clip_shape))
    return count_macs(backbone, model, empty, ())


def _check_method(backbone: Backbone, model: nn.Module, empty: Plan) -> None:
    frames = backbone.grid(model, empty.clip_shape).frames
    if backbone.aligned and frames > 1 and not habits_of(empty.method).aligned:
        raise SttmError(
            f"{backbone.family} attends over time at each place, which {empty.method} does not keep; choose one of "
            + ", ".join(name for name in METHODS if habits_of(name).aligned)
        )
    if habits_of(empty.method).whole_frames and frames == 1:
        raise SttmError(
            f"{empty.method} leaves out frames and this {backbone.family} model has one at a time; choose one of "
            + ", ".join(name for name in METHODS if not habits_of(name).whole_frames)
        )


class _Search:
    """Looks for token counts that meet a target, one list of layers after another."""

    def __init__(self, backbone: Backbone, model: nn.Module, empty: Plan, before: int, compute: float) -> None:
        self.backbone, self.model, self.empty, self.before, self.compute = backbone, model, empty, before, compute
        self.grid = backbone.grid(model, empty.clip_shape)
        self.depth = len(backbone.blocks(model))
        self.habits = habits_of(empty.method)

    def share(self, mergers: Sequence[MergerPlan]) -> float:
        return count_macs(self.backbone, self.model, self.empty, mergers) / self.before

    def best(self) -> tuple[MergerPlan, ...]:
        found: list[tuple[float, float, tuple[MergerPlan, ...]]] = []
        least = 1.0
        if self.habits.whole_frames:
            return self._best_frames()
        if self.habits.everywhere and (mergers := self._solve_everywhere()):
            return mergers
        for layers in self._layers():
            least = min(least, self.share(self._at(layers, 0.0)))
            mergers = self._solve(layers)
            if mergers is None:
                continue
            gap = self.compute - self.share(mergers)
            kept = min(m.frames * m.tokens / (m.frames_before * m.tokens_before) for m in mergers)
            if gap <= TOLERANCE and kept >= GENTLE:
                return mergers
            found.append((max(gap, TOLERANCE), -kept, mergers))
        if not found:
            raise self._out_of_reach(least)
        return min(found, key=lambda entry: entry[:2])[2]

    def _out_of_reach(self, least: float) -> SttmError:
        return SttmError(
            f"compute={self.compute:g} is out of reach for this {self.backbone.family} model with "
            f"{self.empty.method}: merging all it can leaves {least:.3f}; ask for {_ceil(least)} or more"
        )

    def _layers(self) -> Iterator[tuple[int, ...]]:
        """Where mergers may sit, the preferred place first."""
        last = self.depth - 1
        for first, second in ((1 / 4, 1 / 2), (1 / 6, 1 / 3), (1 / 12, 1 / 4), (1 / 12, 1 / 6)):
            a = min(max(round(first * self.depth), 1), last)
            b = min(max(round(second * self.depth), a + 1), last)
            yield (a,) if a == b else (a, b)
        yield (min(1, last),)
        yield (0,)

    def _at(self, layers: Sequence[int], keep: float) -> list[MergerPlan]:
        """Mergers that each leave the share `keep` of what reaches them (one slot a window at the least)."""
        frames, tokens, mergers = self.grid.frames, self.grid.tokens, []
        for number, layer in enumerate(layers):
            window = self.habits.windows[min(number, 1)]
            window = frames if window == WHOLE_CLIP else window
            out = frames // window if frames % window == 0 else frames
            slots = max(1, math.floor(keep * frames * tokens / out))
            mergers.append(MergerPlan(layer, frames, tokens, out, slots))
            frames, tokens = out, slots
        return mergers

    def _everywhere(self, rate: float) -> list[MergerPlan]:
        """A merger before every block but the first, each taking `rate` tokens but at most half."""
        frames, tokens, mergers = self.grid.frames, self.grid.tokens, []
        for layer in range(1, self.depth):
            before = frames * tokens
            less = min(math.floor(rate * layer) - math.floor(rate * (layer - 1)), before // 2)
            if less:
                mergers.append(MergerPlan(layer, frames, tokens, 1, before - less))
                frames, tokens = 1, before - less
        return mergers

    def _solve_everywhere(self) -> tuple[MergerPlan, ...] | None:
        low, high = 0.0, self.grid.frames * self.grid.tokens / 2
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self.share(self._everywhere(middle)) > self.compute else (low, middle)
        mergers = self._everywhere(high)
        halved = sum(m.frames * m.tokens == math.ceil(m.frames_before * m.tokens_before / 2) for m in mergers)
        if not mergers or halved > 1 or not 0 <= self.compute - self.share(mergers) <= TOLERANCE:
            return None
        return self._fill_last(mergers)

    def _best_frames(self) -> tuple[MergerPlan, ...]:
        """One cut or two to fewer whole frames, the first as early as can be; or the most that fits the budget."""
        T, S, depth = self.grid.frames, self.grid.tokens, self.depth
        model, clip = self.model, self.empty.clip_shape
        block = [self.backbone.block_macs(model, self.grid, frames, S) for frames in range(1, T + 1)]
        outer = [self.backbone.outer_macs(model, clip, frames, S) for frames in range(1, T + 1)]
        best, best_share = (0, 0, 1, 1), (depth * block[0] + outer[0]) / self.before
        if best_share > self.compute:
            raise self._out_of_reach(best_share)
        for first, second in combinations_with_replacement(range(depth), 2):
            for few, some in combinations_with_replacement(range(1, T), 2):
                macs = first * block[-1] + (second - first) * block[some - 1] + (depth - second) * block[few - 1]
                share = (macs + outer[few - 1]) / self.before
                if best_share < share <= self.compute:
                    best, best_share = (first, second, some, few), share
            if self.compute - best_share <= TOLERANCE:
                break
        first, second, some, few = best
        if first == second:
            return (MergerPlan(first, T, S, few, S),)
        return MergerPlan(first, T, S, some, S), MergerPlan(second, some, S, few, S)

    def _solve(self, layers: Sequence[int]) -> tuple[MergerPlan, ...] | None:
        """The most tokens within the budget, equal shares first, then the last merger filled up."""
        low, high = 0.0, 1.0
        if self.share(self._at(layers, low)) > self.compute:
            return None
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self.share(self._at(layers, middle)) <= self.compute else (low, middle)
        equal = self._at(layers, low)
        candidates = [equal]
        if len(equal) > 1:
            candidates += [self._trim_first(equal, less) for less in (1, 2, 3)]
        return max((self._fill_last(mergers) for mergers in candidates), key=self.share)

    def _trim_first(self, mergers: list[MergerPlan], less: int) -> list[MergerPlan]:
        first, second = mergers
        slots = max(1, first.tokens - less)
        first = MergerPlan(first.layer, first.frames_before, first.tokens_before, first.frames, slots)
        return [first, MergerPlan(second.layer, first.frames, slots, second.frames, min(second.tokens, slots))]

    def _fill_last(self, mergers: list[MergerPlan]) -> tuple[MergerPlan, ...]:
        *head, last = mergers
        room = last.frames_before // last.frames * last.tokens_before
        low, high = last.tokens, room
        while low < high:
            middle = (low + high + 1) // 2
            filled = MergerPlan(last.layer, last.frames_before, last.tokens_before, last.frames, middle)
            low, high = (middle, high) if self.share([*head, filled]) <= self.compute else (low, middle - 1)
        return (*head, MergerPlan(last.layer, last.frames_before, last.tokens_before, last.frames, low))


def _clip(backbone: Backbone, model: nn.Module, clip_shape: ClipShape | None) -> ClipShape:
    if clip_shape is None:
        return backbone.clip_shape(model)
    try:
        frames, channels, height, width = (operator.index(length) for length in clip_shape)
    except (TypeError, ValueError):
        wrong = f"clip_shape={clip_shape!r} is not (frames, channels, height, width)"
        raise SttmError(f"{wrong}; give those four whole numbers") from None
    return frames, channels, height, width


def _counted(empty: Plan, before: int, after: int, mergers: tuple[MergerPlan, ...]) -> Plan:
    return replace(empty, compute=after / before, macs_before=before, macs_after=after, mergers=mergers)


def _ceil(share: float) -> str:
    return f"{math.ceil(share * 100) / 100:.2f}"
