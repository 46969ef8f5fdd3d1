"""The records of merging: tokens on their grid, and the map of which token went where.

Legend: B clips, P prefix tokens, T token frames, S tokens in a frame, N = T*S tokens in, F frames out,
M slots in a frame out, C width; 3 = (t, y, x), each scaled to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sttm.errors import SttmError
from sttm.merging.ops import averages, take


@dataclass
class Tokens:
    """Tokens on a frames-by-slots grid, with what each stands for and where it is.

    Attributes:
        x_BTSC: features.
        size_BTS: how many tokens of the input grid each token stands for (float32).
        position_BTS3: where it is, (t, y, x) in [-1, 1] (float32); the centroid of what was merged.
        prefix_BPC: tokens beside the grid (a class token), never merged; None where there are none.
        cue_BTSD: what a method judges tokens by where it does not read the tokens themselves (see `MethodSpec.reads`).
        grid: (height, width) of a frame while nothing has merged; None after that.
    """

    x_BTSC: Tensor
    size_BTS: Tensor
    position_BTS3: Tensor
    prefix_BPC: Tensor | None = None
    cue_BTSD: Tensor | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def of_grid(
        cls,
        x_BTSC: Tensor,
        height: int,
        width: int,
        prefix_BPC: Tensor | None = None,
        position_TS3: Tensor | None = None,
    ) -> Tokens:
        """Return tokens that nothing has merged yet: size one each, on a regular grid in row-major order.

        `position_TS3` is what `grid_positions` returns, for those who have it already.

        Raises:
            SttmError: if the tokens of a frame do not fill the height x width grid.
        """
        B, T, S, _ = x_BTSC.shape
        if S != height * width:
            raise SttmError(
                f"{S} tokens in a frame are not a {height} x {width} grid; give the height and width of their grid"
            )
        size_BTS = torch.ones(B, T, S, dtype=torch.float32, device=x_BTSC.device)
        if position_TS3 is None:
            position_TS3 = grid_positions(T, height, width, x_BTSC.device)
        return cls(x_BTSC, size_BTS, position_TS3.expand(B, T, S, 3), prefix_BPC, grid=(height, width))

    def __repr__(self) -> str:
        B, T, S, C = self.x_BTSC.shape
        return f"Tokens({B} clips, {T} frames x {S} tokens, width {C}, {self.x_BTSC.dtype})"


def grid_positions(frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the positions (t, y, x) of a regular token grid, each axis from -1 to 1 (one of length one is at -1).

    Returns:
        position_TS3 in float32, S = height * width in row-major order.
    """

    def axis(length: int) -> Tensor:
        return torch.arange(length, dtype=torch.float32, device=device) * (2 / max(length - 1, 1)) - 1

    t, y, x = torch.meshgrid(axis(frames), axis(height), axis(width), indexing="ij")
    # [T H W] x 3 -> [T S 3]
    return torch.stack((t, y, x), dim=-1).flatten(1, 2)


class GridPositions(nn.Module):
    """The positions of a regular token grid, made once: in float32, whatever the model around it is cast to."""

    position_TS3: Tensor

    def __init__(self, frames: int, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("position_TS3", grid_positions(frames, height, width), persistent=False)

    def forward(self) -> Tensor:
        return self.position_TS3

    def _apply(self, fn: Any, recurse: bool = True) -> GridPositions:
        exact_TS3 = self.position_TS3
        super()._apply(fn, recurse)
        if not exact_TS3.is_meta:
            self.position_TS3 = exact_TS3.to(self.position_TS3.device)
        return self


@dataclass
class MergeMap:
    """Which token went where in one merger or, composed, in several.

    Attributes:
        assignment: int64 [B, N], for each token in, the slot out (f * M + m) that it went to; where the merger is
            soft, the slot with the largest share of it; -1 for a token that was dropped.
        size: [B, F*M], how many tokens of the first grid each slot stands for.
        position: [B, F*M, 3], where each slot is, (t, y, x) in [-1, 1].
        grid: frames and tokens in a frame, before and after: ((T, S), (F, M)).
        meta: int64 [B, F*M], the token in that each slot grew from, or None where there is no such token.
        trajectory: [B, F*M, T, 2], how the slot's object moves: its (y, x) in every frame in, relative to the
            slot's own; None where the method computes none (off the shelf).
        weight: [B, N], the weight of each token in the average that its slot is (0 for a dropped one); None where slots
            are no averages of the tokens that went to them.
    """

    assignment: Tensor
    size: Tensor
    position: Tensor
    grid: tuple[tuple[int, int], tuple[int, int]]
    meta: Tensor | None = None
    trajectory: Tensor | None = None
    weight: Tensor | None = None

    def then(self, later: MergeMap) -> MergeMap:
        """Return the map of this merger followed by `later`: from this one's tokens in to the other's slots out.

        Raises:
            SttmError: if `later` does not start from the slots of this map.
        """
        (T, S), (F, M) = self.grid
        if later.grid[0] != (F, M):
            T2, S2 = later.grid[0]
            raise SttmError(
                f"a map onto {F} x {M} tokens cannot be followed by one from {T2} x {S2}; "
                "give the maps of one forward, in order"
            )
        # A dropped token (-1) reads row 0 and is marked as dropped again below.
        slot = self.assignment.clamp(min=0)
        assignment = torch.where(self.assignment < 0, -1, later.assignment.gather(1, slot))
        meta = weight = None
        if self.meta is not None and later.meta is not None:
            meta = self.meta.gather(1, later.meta)
        if self.weight is not None and later.weight is not None:
            weight = self.weight * later.weight.gather(1, slot)
        return MergeMap(assignment, later.size, later.position, ((T, S), later.grid[1]), meta, weight=weight)

    def merge(self, x_BNC: Tensor) -> Tensor:
        """Return for every slot the average of the features of its tokens: [B, N, C] -> [B, F*M, C].

        Raises:
            SttmError: if the slots of the method are no averages of the tokens that went to them.
        """
        if self.weight is None:
            raise SttmError(
                "the slots of this map are no averages of the tokens that went to them; merge by the method itself"
            )
        slot_B1N, weight_B1N = self.assignment.clamp(min=0)[:, None], self.weight[:, None]
        _, (y_B1MC,) = averages(slot_B1N, self.size.shape[1], weight_B1N, x_BNC[:, None])
        return y_B1MC.squeeze(1)

    def unmerge(self, y_BMC: Tensor) -> Tensor:
        """Return for every token in the features of its slot: [B, F*M, C] -> [B, N, C] (zeros for a dropped one)."""
        y_BNC = take(y_BMC[:, None], self.assignment.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(self.assignment[..., None] < 0, 0.0, y_BNC)

    def __repr__(self) -> str:
        (T, S), (F, M) = self.grid
        return f"MergeMap({self.assignment.shape[0]} clips, {T} x {S} -> {F} x {M} tokens)"


def compose(maps: list[MergeMap]) -> MergeMap:
    """Return one map for several mergers in turn, from the first grid to the last slots.

    Raises:
        SttmError: for no map, or maps that do not follow each other.
    """
    if not maps:
        raise SttmError("compose got no map; give the list that sttm.trace collected")
    whole = maps[0]
    for later in maps[1:]:
        whole = whole.then(later)
    return whole


def unmerge(y_BNC: Tensor, maps: list[MergeMap]) -> Tensor:
    """Return for every token of the first grid the features of its slot: [B, P + F*M, C] -> [B, P + T*S, C].

    Tokens in front of the slots, a class token or registers, stay as they are. `sttm.apply(model, restore=True)` does
    this inside the model.

    Args:
        y_BNC: features of the last slots, frame by frame.
        maps: what `sttm.trace` collected in that forward.

    Example:
        >>> with sttm.trace(model) as maps:
        ...     tokens = model(pixels).last_hidden_state
        >>> sttm.unmerge(tokens, maps).shape  # that of the plain model

    Raises:
        SttmError: if there are fewer tokens than slots.
    """
    whole = compose(maps)
    slots = whole.size.shape[1]
    prefix = y_BNC.shape[1] - slots
    if len(y_BNC) != len(whole.size) or prefix < 0:
        raise SttmError(
            f"features of shape {tuple(y_BNC.shape)} are not those of {len(whole.size)} clips of {slots} slots; "
            "give the tokens and the maps of one forward"
        )
    return torch.cat((y_BNC[:, :prefix], whole.unmerge(y_BNC[:, prefix:])), dim=1)
