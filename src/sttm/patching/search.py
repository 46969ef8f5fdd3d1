"""Search the mergers that bring a model to a compute target, counting what each candidate costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, combinations_with_replacement

from torch import nn

from sttm.backbones.base import Backbone
from sttm.errors import SttmError
from sttm.merging import WHOLE_CLIP, spec_of
from sttm.patching.plan import TOLERANCE, MergerPlan, Plan, count_macs

#: Where the two mergers sit, as shares of the depth; each next one is earlier, which lets more tokens through.
SCHEDULES = ((1 / 4, 1 / 2), (1 / 6, 1 / 3), (1 / 12, 1 / 4), (0, 1 / 4))

#: Where a merger would leave less than this share of its tokens, both move towards the first block.
GENTLE = 0.7


class OutOfReachError(SttmError):
    """A compute below what the most merging leaves."""


class Search:
    """Search token counts that meet the target of an empty plan, one list of layers after another.

    `shares` says how the reduction is split over the mergers: the share of the first and that of the last, with the
    others on a line between. What is split is the logarithm of the tokens kept, or, where a method merges before every
    block, the number of tokens taken.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: nn.Module,
        empty: Plan,
        layers: Sequence[int] | None,
        window: int | None,
        shares: tuple[float, float] = (1, 1),
    ) -> None:
        self.backbone, self.model, self.empty, self.compute = backbone, model, empty, empty.target
        self.before, self.layers, self.window, self.shares = empty.macs_before, layers, window, shares
        self.grid = backbone.grid(model, empty.clip_shape)
        self.depth = len(backbone.blocks(model))
        self.spec = spec_of(empty.method)
        self.known: dict[tuple[MergerPlan, ...], float] = {}

    def share(self, mergers: Sequence[MergerPlan]) -> float:
        """Return the multiply-adds with these mergers over those without; a bisection asks for some many times."""
        key = tuple(mergers)
        if key not in self.known:
            self.known[key] = count_macs(self.backbone, self.model, self.empty, mergers) / self.before
        return self.known[key]

    def best(self) -> tuple[MergerPlan, ...]:
        found: list[tuple[float, float, tuple[MergerPlan, ...]]] = []
        least = 1.0
        if self.spec.whole_frames:
            return self._best_frames()
        if self.spec.everywhere and self.layers is None and (mergers := self._solve_everywhere()):
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

    def _out_of_reach(self, least: float) -> OutOfReachError:
        return OutOfReachError(
            f"compute={self.compute:g} is out of reach for this {self.backbone.family} model with {self.empty.method}: "
            f"merging all it can leaves {least:.3f}; ask for {math.ceil(least * 100) / 100:.2f} or more"
        )

    def _layers(self) -> Iterator[tuple[int, ...]]:
        """Where mergers may sit, the preferred place first."""
        if self.layers is not None:
            yield tuple(self.layers)
            return
        last = self.depth - 1
        for first, second in SCHEDULES if self.spec.schedules is None else self.spec.schedules:
            a = min(round(first * self.depth), last)
            b = min(max(round(second * self.depth), a + 1), last)
            yield (a,) if a == b else (a, b)
        yield (0,)

    def _at(self, layers: Sequence[int], keep: float) -> list[MergerPlan]:
        """Mergers that on average leave `keep` of what reaches them (one slot a window at the least)."""
        frames, tokens, mergers = self.grid.frames, self.grid.tokens, []
        for number, (layer, share) in enumerate(zip(layers, self._weights(len(layers)), strict=True)):
            window = self.spec.windows[min(number, 1)]
            if number == 0 and self.window is not None:
                window = self.window
            window = frames if window == WHOLE_CLIP else window
            out = frames // window if frames % window == 0 else frames
            slots = max(1, math.floor(keep**share * frames * tokens / out))
            inside = self.spec.inside == "all" or (self.spec.inside == "later" and number > 0)
            mergers.append(MergerPlan(layer, frames, tokens, out, slots, inside))
            frames, tokens = out, slots
        return mergers

    def _everywhere(self, rate: float) -> list[MergerPlan]:
        """A merger inside every block, or before every block but the first, which takes `rate` tokens, at most half."""
        frames, tokens, mergers = self.grid.frames, self.grid.tokens, []
        inside = self.spec.inside == "all"
        layers = range(0 if inside else 1, self.depth)
        until = [0.0, *accumulate(self._weights(len(layers)))]
        for number, layer in enumerate(layers):
            before = frames * tokens
            less = min(math.floor(rate * until[number + 1]) - math.floor(rate * until[number]), before // 2)
            if less:
                mergers.append(MergerPlan(layer, frames, tokens, 1, before - less, inside))
                frames, tokens = 1, before - less
        return mergers

    def _weights(self, count: int) -> list[float]:
        """Return the shares of so many mergers, on a line from the first to the last, 1 on average."""
        first, last = self.shares
        shares = [first + (last - first) * number / max(1, count - 1) for number in range(count)]
        return [share * count / sum(shares) for share in shares]

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
        if len(equal) == 2:
            candidates += [self._trim_first(equal, less) for less in (1, 2, 3)]
        return max((self._fill_last(mergers) for mergers in candidates), key=self.share)

    def _trim_first(self, mergers: list[MergerPlan], less: int) -> list[MergerPlan]:
        first, second = mergers
        first = replace(first, tokens=max(1, first.tokens - less))
        return [first, replace(second, tokens_before=first.tokens, tokens=min(second.tokens, first.tokens))]

    def _fill_last(self, mergers: list[MergerPlan]) -> tuple[MergerPlan, ...]:
        *head, last = mergers
        low, high = last.tokens, last.frames_before // last.frames * last.tokens_before
        while low < high:
            middle = (low + high + 1) // 2
            filled = [*head, replace(last, tokens=middle)]
            low, high = (middle, high) if self.share(filled) <= self.compute else (low, middle - 1)
        return (*head, replace(last, tokens=low))
