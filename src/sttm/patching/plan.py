"""The plan of a merged model: where its mergers sit, what they are, and what one clip then costs.

A multiply-add is one term of a matrix product or convolution; papers call them "GFLOPs". Norms, activations, softmax,
sorting and other work in proportion to the tokens alone are not counted, here as in those papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from sttm.backbones.base import Backbone, ClipShape, Grid
from sttm.merging import TokenReducer, method_named, spec_of

#: How a plan is read from JSON (see `sttm.patching.saving`).
STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
#: A plan ends at most this far below the compute that was asked for.
TOLERANCE = 0.01


@dataclass(frozen=True)
class MergerPlan:
    """One merger: its block (counted from 0), the grids before and after it, and whether it is inside the block.

    Inside means between attention and MLP; else it is before the block.
    """

    __pydantic_config__: ClassVar = STRICT

    layer: int
    frames_before: int
    tokens_before: int
    frames: int
    tokens: int
    inside: bool = False


@dataclass(frozen=True)
class Plan:
    """What `sttm.apply` does to a model: `print(plan)` is a table.

    Attributes:
        compute: multiply-adds after over before, those of the mergers included.
        macs_before, macs_after: multiply-adds of one clip.
        mergers: one MergerPlan each, in order.
        method, learned, selector, motion: what the mergers are; `motion` is whether slots get the motion feature.
        clip_shape: (frames, channels, height, width) of the clips that were counted.
        target: the compute that was asked for (0: not known).
        restore: whether the tokens come back as the first grid behind the last block.
    """

    __pydantic_config__: ClassVar = STRICT

    compute: float
    macs_before: int
    macs_after: int
    mergers: tuple[MergerPlan, ...]
    method: str
    learned: bool
    clip_shape: ClipShape
    selector: str | None = None
    family: str = ""
    target: float = 0.0
    motion: bool = False
    restore: bool = False

    @property
    def short_by(self) -> float:
        """How far below its target the plan stays, where the token grid is too small to come within 0.01; else 0."""
        gap = self.target - self.compute
        return gap if gap > TOLERANCE else 0.0

    def meets(self, compute: float, method: str, **wanted: Any) -> bool:
        """Return whether this plan is what is asked for; options of `sttm.apply` that are None may be anything."""
        own: dict[str, Any] = {"learned": self.learned, "selector": self.selector, "motion": self.motion}
        own["restore"] = self.restore
        own["layers"] = [m.layer for m in self.mergers]
        own["window"] = self.mergers[0].frames_before // self.mergers[0].frames if self.mergers else None
        asked = {
            name: list(value) if name == "layers" else value for name, value in wanted.items() if value is not None
        }
        within = self.compute <= compute < self.compute + TOLERANCE
        return within and self.method == method and asked == {name: own[name] for name in asked}

    def __str__(self) -> str:
        mode = "learned" if self.learned else "off the shelf"
        if self.motion != (self.learned and spec_of(self.method).moves):
            mode += ", with motion" if self.motion else ", without motion"
        lines = [
            f"{self.method} ({mode}) on {self.family}: {self.macs_before / 1e9:.3f} -> {self.macs_after / 1e9:.3f} "
            f"GMACs a clip, compute {self.compute:.3f}"
        ]
        if self.short_by:
            lines[0] += f" ({self.short_by:.3f} below the {self.target:g} asked for: the token grid is small)"
        if not self.mergers:
            return lines[0] + "; nothing to merge"
        lines.append(f"{'block':>12}  {'frames x tokens':>22}  {'tokens':>14}  {'kept':>5}")
        for m in self.mergers:
            before, after = m.frames_before * m.tokens_before, m.frames * m.tokens
            grids = f"{m.frames_before} x {m.tokens_before} -> {m.frames} x {m.tokens}"
            place = f"{'inside' if m.inside else 'before'} {m.layer}"
            lines.append(f"{place:>12}  {grids:>22}  {f'{before} -> {after}':>14}  {after / before:>5.0%}")
        if self.restore:
            m, first = self.mergers[-1], self.mergers[0]
            grids = f"{m.frames} x {m.tokens} -> {first.frames_before} x {first.tokens_before}"
            lines.append(f"{'behind all':>12}  {grids:>22}  tokens come back")
        return "\n".join(lines)


def build_merger(
    backbone: Backbone, model: nn.Module, plan: Plan, merger: MergerPlan, grid: Grid | None = None
) -> TokenReducer:
    """Return the module of one planned merger; `grid` is that of the tokens where nothing has merged before."""
    fresh = None if grid is None else (grid.height, grid.width)
    return method_named(plan.method)(**_arguments(backbone, model, plan, merger), grid_in=fresh)


def _arguments(backbone: Backbone, model: nn.Module, plan: Plan, merger: MergerPlan) -> dict[str, Any]:
    return dict(
        dim=backbone.width(model), frames=merger.frames, tokens=merger.tokens, frames_in=merger.frames_before,
        tokens_in=merger.tokens_before, learned=plan.learned, selector=plan.selector, motion=plan.motion,
        cue_dim=backbone.head_width(model) if merger.inside else None, depth=merger.layer / len(backbone.blocks(model)),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _merger_macs(method: type[TokenReducer], **arguments: Any) -> int:
    """Return the multiply-adds of one merger for one clip; a search asks for the same ones again and again."""
    with torch.device("meta"):
        return method(**arguments).total_macs(arguments["frames_in"], arguments["tokens_in"])


def count_macs(backbone: Backbone, model: nn.Module, plan: Plan, mergers: Sequence[MergerPlan]) -> int:
    """Multiply-adds of one clip through a model with these mergers."""
    grid = backbone.grid(model, plan.clip_shape)
    frames, tokens, inner = grid.frames, grid.tokens, 0
    planned, method = {merger.layer: merger for merger in mergers}, method_named(plan.method)
    for number in range(len(backbone.blocks(model))):
        merger = planned.get(number)
        if merger is not None:
            inner += _merger_macs(method, **_arguments(backbone, model, plan, merger))
            if merger.inside:
                # Attention sees the tokens before, the MLP those after.
                inner += backbone.block_macs(model, grid, frames, tokens) + _reading_macs(backbone, model, plan, merger)
                inner -= backbone.mlp_macs(model, grid, frames, tokens)
                inner += backbone.mlp_macs(model, grid, merger.frames, merger.tokens)
            frames, tokens = merger.frames, merger.tokens
        if merger is None or not merger.inside:
            inner += backbone.block_macs(model, grid, frames, tokens)
    if plan.restore:
        frames, tokens = grid.frames, grid.tokens
    return grid.sequences * inner + backbone.outer_macs(model, plan.clip_shape, frames, tokens)


def _reading_macs(backbone: Backbone, model: nn.Module, plan: Plan, merger: MergerPlan) -> int:
    """Multiply-adds of what a merger inside a block reads: the attention that fused kernels do not return."""
    if spec_of(plan.method).reads != "attention":
        return 0
    grid = backbone.grid(model, plan.clip_shape)
    count, keys = backbone.lengths(grid, merger.frames_before, merger.tokens_before)
    keys += backbone.layer(backbone.blocks(model)[merger.layer]).attention[0].added
    return count * (min(grid.prefix, 1) or keys) * keys * backbone.width(model)
