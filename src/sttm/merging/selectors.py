"""How meta tokens are chosen: which tokens of a window the slots grow from (step 1 of the method).

A selector names M tokens of each window and gives the cosine of every token with each of them. All selectors have the
same call, so that they can be exchanged: `SELECTORS[name](count, length, position_FL3)(x_BFLC, position_BFL3)` returns
`(meta_BFM, cosine_BFML)`, the indices of the meta tokens and all cosines with them.

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

    key: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.tensor([2 * y + x for y in GAPPED for x in GAPPED]), persistent=False)

    def forward(self, position_BFL3: Tensor, timed: bool = True) -> Tensor:
        """Return the tokens in order: [B F L 3] -> indices [B F L]; without `timed`, over the frames together."""
        double_BFL3 = (position_BFL3.float() + 1).clamp(0, 2)
        # Centroids often lie half way between two cells; moved a little, no rounding error decides where they go.
        t, y, x = (double_BFL3 * ((CELLS - 1) / 2) + OFFSET).long().unbind(-1)
        key_BFL = self.key[torch.add(x, y, alpha=CELLS)]
        if timed:
            key_BFL = torch.add(key_BFL, t, alpha=CELLS**2)
        # Within a cell by raster position; where centroids coincide, by place in store. Two sorts of keys below 2^31
        # each, as OpenVINO has no integers of 64 bits; all keys differ, so that every engine sorts them alike.
        raster_BFL = torch.add(double_BFL3[..., 2], double_BFL3[..., 1], alpha=2)
        raster_BFL = (raster_BFL * (RASTER / 8) + OFFSET).long()
        length = position_BFL3.shape[2]
        stored_L = torch.arange(length, device=position_BFL3.device)
        by_raster_BFL = torch.add(stored_L, raster_BFL, alpha=length).argsort(dim=-1)
        by_cell_BFL = torch.add(stored_L, key_BFL.gather(-1, by_raster_BFL), alpha=length).argsort(dim=-1)
        return by_raster_BFL.gather(-1, by_cell_BFL)

    def ranks(self, position_BFL3: Tensor) -> Tensor:
        """Return the place of each token in that order: [B F L]."""
        order_BFL = self(position_BFL3)
        place_L = torch.arange(position_BFL3.shape[2], device=position_BFL3.device)
        return torch.zeros_like(order_BFL).scatter(-1, order_BFL, place_L.expand_as(order_BFL))


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
        position_FL3: where the tokens of each window lie in every clip, so that their order is found once; None where
            that depends on the clip.
    """

    def __init__(self, count: int, length: int | None = None, position_FL3: Tensor | None = None) -> None:
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

    def __init__(self, count: int, length: int | None = None, position_FL3: Tensor | None = None) -> None:
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

    rank_BFL: Tensor | None
    turn_BFL: Tensor | None

    def __init__(self, count: int, length: int | None = None, position_FL3: Tensor | None = None) -> None:
        super().__init__(count, length)
        self.turns = Table(bit_reversed, length)
        known = (None, None) if position_FL3 is None else self._ranked(position_FL3[None])
        self.register_buffer("rank_BFL", known[0], persistent=False)
        self.register_buffer("turn_BFL", known[1], persistent=False)

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor) -> tuple[Tensor, Tensor]:
        product_BFLL = x_BFLC @ x_BFLC.transpose(-1, -2)
        square_BFL = product_BFLL.diagonal(dim1=-2, dim2=-1)
        # No gradient goes through indices, so that nothing is kept for one.
        meta_BFM = self._most_novel(product_BFLL, square_BFL, position_BFL3, x_BFLC.shape[-1])
        to_unit_BFL = square_BFL.clamp(min=TINY_SQUARE).rsqrt()
        to_unit_BFM1 = to_unit_BFL.gather(-1, meta_BFM)[..., None]
        return meta_BFM, take(product_BFLL, meta_BFM) * to_unit_BFM1 * to_unit_BFL[..., None, :]

    def _ranked(self, position_BFL3: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rank of each token in its window, and its number in the order of equally novel ones: [B F L]."""
        rank_BFL = self.order.ranks(position_BFL3)
        return rank_BFL, self.turns(position_BFL3)[rank_BFL]

    def _most_novel(self, product_BFLL: Tensor, square_BFL: Tensor, position_BFL3: Tensor, width: int) -> Tensor:
        rank_BFL, turn_BFL = self.rank_BFL, self.turn_BFL
        if rank_BFL is None or turn_BFL is None:
            rank_BFL, turn_BFL = self._ranked(position_BFL3)
        later_BFLL = rank_BFL[..., None, :] >= rank_BFL[..., None]
        # |x - x'|^2 = x.x + x'.x' - 2 x.x', its least over all x' that came before
        # In place, as this is the largest tensor of a merge.
        less_BFLL = torch.sub(square_BFL[..., None, :], product_BFLL, alpha=2).masked_fill_(later_BFLL, torch.inf)
        novelty_BFL = (square_BFL + less_BFLL.amin(-1)) / width
        # Equally novel tokens, as in a still clip, are taken on a regular stride.
        return (novelty_BFL.clamp(min=0) - turn_BFL * (TIE / 2**RANK_BITS)).topk(self.count, dim=-1).indices

    def macs(self, windows: int, length: int, width: int) -> int:
        return windows * length * length * width


#: The selectors by name.
SELECTORS: dict[str, type[Selector]] = {"novelty": NoveltySelector, "stride": StrideSelector}
