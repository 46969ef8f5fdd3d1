"""Finding the meta tokens: which tokens of a window the slots grow from (step 1 of the method).

A selector looks at the tokens of each window, names M of them, and says how much every token is like each of them. All
selectors answer the same call, so that they can be exchanged: `selector(x_BFLC, position_BFL3, count) -> (meta_BFM,
cosine_BFML)`, the indices of the meta tokens and all cosines with them.

Legend: B clips, F windows (frames out), L tokens in a window, M meta tokens, C width; 3 = (t, y, x).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from sttm.errors import SttmError

# Cells a side of the lattice on which tokens are put in order; finer than the token grid of any model we know.
LATTICE_BITS = 6
# Tells equally new tokens apart, by far less than features differ.
TIE = 1e-5
# Squared length of a token of nothing; only keeps the division finite.
TINY_SQUARE = 1e-24


def stride_order(position_BFL3: Tensor) -> Tensor:
    """Puts the tokens of a window in order, frame by frame and along a Z-order curve in each: [B F L 3] -> [B F L].

    A regular stride along that curve takes one token of every little block, whatever the stride, and the order comes
    from where the tokens are, never from how they happen to be stored. Two tokens in one cell keep their raster order.
    """
    cells = 2**LATTICE_BITS
    unit = ((position_BFL3.float() + 1) / 2).clamp(0, 1)
    t, y, x = (unit * (cells - 1)).round().long().unbind(-1)
    # The bits of a number with a gap after each: y's and x's then interleave.
    bit = torch.arange(LATTICE_BITS, device=x.device)
    gapped = (((torch.arange(cells, device=x.device)[:, None] >> bit) & 1) << (2 * bit)).sum(-1)
    key = t * cells**2 + 2 * gapped[y] + gapped[x]
    # Below the cell: the exact raster position, so that no two tokens of different place tie.
    raster = unit[..., 1] * 0.5 + unit[..., 2] * 0.25
    return (key.double() + raster).argsort(dim=-1)


def regular_picks(length: int, count: int, device: torch.device) -> Tensor:
    """Places of `count` picks at a regular stride among `length`: int64 [count], all different."""
    return ((torch.arange(count, device=device) * 2 + 1) * length) // (2 * count)


class StrideSelector(nn.Module):
    """Meta tokens on a regular stride in time and space: nothing to learn, the same places in every window."""

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> tuple[Tensor, Tensor]:
        meta_BFM = self.pick(x_BFLC, position_BFL3, count)
        unit_BFLC = normalize(x_BFLC, dim=-1)
        return meta_BFM, take(unit_BFLC, meta_BFM) @ unit_BFLC.transpose(-1, -2)

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> Tensor:
        """Indices of the meta tokens: [B F M]."""
        order_BFL = stride_order(position_BFL3)
        return order_BFL[..., regular_picks(order_BFL.shape[-1], count, x_BFLC.device)]

    def macs(self, windows: int, length: int, count: int, width: int) -> int:
        return windows * length * count * width


class NoveltySelector(nn.Module):
    """Meta tokens are the tokens least like any that came before them, frame by frame and along a curve in each frame.

    Needs no training and adapts to the clip: what stands still, or goes on as a wall or a lawn does, is new once;
    what moves or differs keeps tokens of its own. All tokens of a window are compared with all, and of that the
    cosines with the meta tokens are a part, which costs nothing more.
    """

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> tuple[Tensor, Tensor]:
        product_BFLL = x_BFLC @ x_BFLC.transpose(-1, -2)
        meta_BFM = self._newest(product_BFLL.detach(), position_BFL3, count, x_BFLC.shape[-1])
        to_unit_BFL = product_BFLL.diagonal(dim1=-2, dim2=-1).clamp(min=TINY_SQUARE).rsqrt()
        to_unit_BFM1 = to_unit_BFL.gather(-1, meta_BFM)[..., None]
        return meta_BFM, take(product_BFLL, meta_BFM) * to_unit_BFM1 * to_unit_BFL[..., None, :]

    @staticmethod
    def _newest(product_BFLL: Tensor, position_BFL3: Tensor, count: int, width: int) -> Tensor:
        rank_BFL = stride_order(position_BFL3).argsort(-1)
        later_BFLL = rank_BFL[..., None, :] >= rank_BFL[..., None]
        # |x - x'|^2 = x.x + x'.x' - 2 x.x', the least of it over all x' that came before
        square_BFL = product_BFLL.diagonal(dim1=-2, dim2=-1)
        less_BFLL = torch.sub(square_BFL[..., None, :], product_BFLL, alpha=2).masked_fill_(later_BFLL, torch.inf)
        novelty_BFL = (square_BFL + less_BFLL.amin(-1)) / width
        # What is equally new, as in a still clip, falls on a regular stride.
        novelty_BFL = novelty_BFL.clamp(min=0) - TIE * spread(rank_BFL.shape[-1], rank_BFL.device)[rank_BFL]
        return novelty_BFL.topk(count, dim=-1).indices

    def macs(self, windows: int, length: int, count: int, width: int) -> int:
        return windows * length * length * width


def spread(length: int, device: torch.device | None = None) -> Tensor:
    """For each place in a row when its turn comes, in [0, 1): any number of first turns are spread over the row.

    Source: van der Corput, 1935 (the bits of the place, read backwards).
    """
    bit = torch.arange(max(1, (length - 1).bit_length()), device=device)
    place = torch.arange(length, device=device)[:, None]
    return (((place >> bit) & 1) / 2.0 ** (bit + 1)).sum(-1)


Selector = NoveltySelector | StrideSelector
SELECTORS: dict[str, type[Selector]] = {"novelty": NoveltySelector, "stride": StrideSelector}


def make_selector(name: str) -> Selector:
    """The selector of that name: "novelty" or "stride"."""
    if name not in SELECTORS:
        raise SttmError(f"unknown way to find meta tokens {name!r}; choose {' or '.join(SELECTORS)}")
    return SELECTORS[name]()


def take(x_BFLC: Tensor, index_BFM: Tensor) -> Tensor:
    """The tokens of those indices: [B F L C], [B F M] -> [B F M C]."""
    B, F, L, C = x_BFLC.shape
    # Whole rows of one long table: copying them beats gathering channel by channel.
    window_BF1 = torch.arange(B * F, device=x_BFLC.device).view(B, F, 1)
    row_BFM = index_BFM + window_BF1 * L
    return x_BFLC.reshape(B * F * L, C).index_select(0, row_BFM.flatten()).view(*index_BFM.shape, C)


def own_linear(layer: nn.Linear, x_C: Tensor) -> Tensor:
    """`layer` in the precision of its weights, whatever that of `x` is."""
    return linear(x_C.to(layer.weight.dtype), layer.weight, layer.bias)
