"""How meta tokens are chosen: which tokens of a window the slots grow from (step 1 of the method).

A selector names M tokens of each window and gives the cosine of every token with each of them. All selectors have the
same call, so that they can be exchanged: `SELECTORS[name](count, length)(x_BFLC, position_BFL3)` returns `(meta_BFM,
cosine_BFML)`, the indices of the meta tokens and all cosines with them.

Legend: B clips, F windows (frames out), L tokens in a window, M meta tokens, C width; 3 = (t, y, x).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sttm.merging.ops import Table, take

# Bits of a cell's number along one side of the lattice on which tokens are ordered; finer than any model's token grid.
LATTICE_BITS = 6
CELLS = 2**LATTICE_BITS
# Where a cell ends: not at any fraction of small numbers, as averages of grid positions are.
OFFSET = 0.618
# Each cell's number with a gap after every bit: those of y and of x then interleave.
GAPPED = [sum((cell >> bit & 1) << 2 * bit for bit in range(LATTICE_BITS)) for cell in range(CELLS)]
# Steps of the raster position.
RASTER = 2**16
# Bits of a token's rank in its window; float32 holds such numbers exactly.
RANK_BITS = 24
# Decides between equally novel tokens; differences of features are far larger.
TIE = 1e-5
# Squared length of a zero token, which keeps the division finite.
TINY_SQUARE = 1e-24


class ZOrder(nn.Module):
    """Orders the tokens of a window frame by frame, and along a Z-order curve in each frame.

    A regular stride along that curve takes one token of every small block, whatever the stride. The order depends on
    the positions of the tokens, never on how they are stored. Two tokens in one cell keep their raster order.
    """

    x_key: Tensor
    y_key: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x_key", torch.tensor(GAPPED), persistent=False)
        self.register_buffer("y_key", torch.tensor(GAPPED) * 2, persistent=False)

    def forward(self, position_BFL3: Tensor, timed: bool = True) -> Tensor:
        """Return the tokens in order: [B F L 3] -> indices [B F L]; without `timed`, over the frames together."""
        unit_BFL3 = ((position_BFL3.float() + 1) / 2).clamp(0, 1)
        # Centroids often lie half way between two cells; moved a little, no rounding error decides where they go.
        t, y, x = (unit_BFL3 * (CELLS - 1) + OFFSET).floor().long().unbind(-1)
        key_BFL = self.y_key[y] + self.x_key[x]
        if timed:
            key_BFL = t * CELLS**2 + key_BFL
        # Within a cell by raster position; where centroids coincide, by place in store. Two sorts of keys below 2^31
        # each, as OpenVINO has no integers of 64 bits; all keys differ, so that every engine sorts them alike.
        raster_BFL = ((unit_BFL3[..., 1] * 0.5 + unit_BFL3[..., 2] * 0.25) * RASTER + OFFSET).floor().long()
        length = position_BFL3.shape[2]
        stored_L = torch.arange(length, device=position_BFL3.device)
        by_raster_BFL = (raster_BFL * length + stored_L).argsort(dim=-1)
        by_cell_BFL = (key_BFL.gather(-1, by_raster_BFL) * length + stored_L).argsort(dim=-1)
        return by_raster_BFL.gather(-1, by_cell_BFL)


def regular_picks(length: int, count: int) -> list[int]:
    """Return `count` different numbers at a regular stride among `length`."""
    return [(2 * pick + 1) * length // (2 * count) for pick in range(count)]


@cache
def bit_reversed(length: int) -> tuple[int, ...]:
    """Return for each rank its bits in reverse: any number of the smallest are spread evenly over the ranks.

    Source: van der Corput, 1935.
    """
    return tuple(int(f"{rank:0{RANK_BITS}b}"[::-1], 2) for rank in range(length))


class Selector(nn.Module, ABC):
    """A way to choose meta tokens.

    Args:
        count: meta tokens of each window, M.
        length: tokens in a window, L; None where it is unknown.
    """

    def __init__(self, count: int, length: int | None = None) -> None:
        super().__init__()
        self.count = count
        self.order = ZOrder()

    @abstractmethod
    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of the meta tokens [B F M], and the cosine of each with every token [B F M L]."""

    @abstractmethod
    def macs(self, windows: int, length: int, width: int) -> int:
        """Return the multiply-adds of one clip."""


class StrideSelector(Selector):
    """Meta tokens on a regular stride in time and space: nothing to learn, the same positions in every window."""

    def __init__(self, count: int, length: int | None = None) -> None:
        super().__init__(count, length)
        self.picks = Table(partial(regular_picks, count=count), length)

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor) -> tuple[Tensor, Tensor]:
        meta_BFM = self.pick(x_BFLC, position_BFL3)
        unit_BFLC = normalize(x_BFLC, dim=-1)
        return meta_BFM, take(unit_BFLC, meta_BFM) @ unit_BFLC.transpose(-1, -2)

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        """Return the indices of the meta tokens: [B F M]."""
        return self.order(position_BFL3)[..., self.picks(position_BFL3)]

    def macs(self, windows: int, length: int, width: int) -> int:
        return windows * length * self.count * width


class NoveltySelector(Selector):
    """Meta tokens are the tokens least like any before them, frame by frame and along a curve in each frame.

    It needs no training and adapts to the clip: a still background, or a wall or lawn that goes on, is novel once; what
    moves or differs keeps tokens of its own. All tokens of a window are compared with all; the cosines with the meta
    tokens are part of that and cost nothing more.
    """

    def __init__(self, count: int, length: int | None = None) -> None:
        super().__init__(count, length)
        self.turns = Table(bit_reversed, length)

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor) -> tuple[Tensor, Tensor]:
        product_BFLL = x_BFLC @ x_BFLC.transpose(-1, -2)
        meta_BFM = self._most_novel(product_BFLL.detach(), position_BFL3, x_BFLC.shape[-1])
        to_unit_BFL = product_BFLL.diagonal(dim1=-2, dim2=-1).clamp(min=TINY_SQUARE).rsqrt()
        to_unit_BFM1 = to_unit_BFL.gather(-1, meta_BFM)[..., None]
        return meta_BFM, take(product_BFLL, meta_BFM) * to_unit_BFM1 * to_unit_BFL[..., None, :]

    def _most_novel(self, product_BFLL: Tensor, position_BFL3: Tensor, width: int) -> Tensor:
        rank_BFL = self.order(position_BFL3).argsort(-1)
        later_BFLL = rank_BFL[..., None, :] >= rank_BFL[..., None]
        # |x - x'|^2 = x.x + x'.x' - 2 x.x', its least over all x' that came before
        square_BFL = product_BFLL.diagonal(dim1=-2, dim2=-1)
        # In place, as this is the largest tensor of a merge.
        less_BFLL = torch.sub(square_BFL[..., None, :], product_BFLL, alpha=2).masked_fill_(later_BFLL, torch.inf)
        novelty_BFL = (square_BFL + less_BFLL.amin(-1)) / width
        # Equally novel tokens, as in a still clip, are taken on a regular stride.
        turn_BFL = self.turns(position_BFL3)[rank_BFL] * (TIE / 2**RANK_BITS)
        return (novelty_BFL.clamp(min=0) - turn_BFL).topk(self.count, dim=-1).indices

    def macs(self, windows: int, length: int, width: int) -> int:
        return windows * length * length * width


#: The selectors by name.
SELECTORS: dict[str, type[Selector]] = {"novelty": NoveltySelector, "stride": StrideSelector}
