"""Finding the meta tokens: which tokens of a window the slots grow from (step 1 of the method).

A finder looks at the tokens of each window and names M of them. All finders answer the same call, so that they can
be exchanged: `finder(x, position, count) -> (index, gate)`.

Legend: B clips, F windows (frames out), L tokens in a window, M meta tokens, C width; 3 = (t, y, x).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sttm.errors import SttmError

# Cells a side of the lattice on which tokens are put in order; finer than the token grid of any model we know.
LATTICE_BITS = 6


def stride_order(position_BFL3: Tensor) -> Tensor:
    """Puts the tokens of a window in order, frame by frame and along a Z-order curve in each: [B F L 3] -> [B F L].

    A regular stride along that curve takes one token of every little block, whatever the stride, and the order comes
    from where the tokens are, never from how they happen to be stored. Two tokens in one cell keep their raster order.
    """
    cells = 2**LATTICE_BITS
    unit = ((position_BFL3.float() + 1) / 2).clamp(0, 1)
    cell = (unit * (cells - 1)).round().long()
    t, y, x = cell.unbind(-1)
    key = t
    for bit in reversed(range(LATTICE_BITS)):
        key = key * 4 + ((y >> bit) & 1) * 2 + ((x >> bit) & 1)
    # Below the cell: the exact raster position, so that no two tokens of different place tie.
    raster = unit[..., 1] * 0.5 + unit[..., 2] * 0.25
    return (key.double() + raster).argsort(dim=-1)


def regular_picks(length: int, count: int, device: torch.device) -> Tensor:
    """Places of `count` picks at a regular stride among `length`: int64 [count], all different."""
    return ((torch.arange(count, device=device) * 2 + 1) * length) // (2 * count)


class StrideFinder(nn.Module):
    """Meta tokens on a regular stride in time and space: nothing to learn, the same places in every window."""

    has_gate = False

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> tuple[Tensor, None]:
        order_BFL = stride_order(position_BFL3)
        return order_BFL[..., regular_picks(order_BFL.shape[-1], count, x_BFLC.device)], None

    def macs(self, windows: int, length: int, count: int, width: int) -> int:
        return 0


class CoverageFinder(nn.Module):
    """Half of the meta tokens on a regular stride, the other half where those represent the window worst.

    Needs no training and adapts to the clip: flat background is left to the few regular ones, while whatever
    resembles none of them, as a rule the objects, keeps tokens of its own.
    """

    has_gate = False

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> tuple[Tensor, None]:
        seeds = (count + 1) // 2
        order_BFL = stride_order(position_BFL3)
        seed_BFM = order_BFL[..., regular_picks(order_BFL.shape[-1], seeds, x_BFLC.device)]
        if seeds == count:
            return seed_BFM, None
        unit_BFLC = nn.functional.normalize(x_BFLC, dim=-1)
        seed_BFMC = take(unit_BFLC, seed_BFM)
        covered_BFL = (unit_BFLC @ seed_BFMC.transpose(-1, -2)).amax(-1)
        # A seed is never chosen twice: beyond any cosine. Ties (a constant input) fall in the regular order.
        is_seed_BFL = (torch.arange(x_BFLC.shape[2], device=x_BFLC.device) == seed_BFM[..., None]).any(-2)
        covered_BFL = covered_BFL + 4.0 * is_seed_BFL
        worst_BFM = covered_BFL.topk(count - seeds, dim=-1, largest=False).indices
        return torch.cat((seed_BFM, worst_BFM), dim=-1), None

    def macs(self, windows: int, length: int, count: int, width: int) -> int:
        seeds = (count + 1) // 2
        return 0 if seeds == count else windows * length * seeds * width


class SaliencyFinder(nn.Module):
    """Meta tokens by a learned score: the M highest of each window, with Gumbel noise while training.

    The gate carries the gradient to the score (straight through): it is one in value.

    Source: Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017; Kool, van Hoof, Welling,
    "Stochastic Beams and Where to Find Them", ICML 2019 (Gumbel top-k).
    """

    has_gate = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> tuple[Tensor, Tensor]:
        score_BFL = own_linear(self.score, x_BFLC).squeeze(-1).to(x_BFLC.dtype)
        ranked_BFL = score_BFL
        if self.training:
            uniform = torch.rand_like(score_BFL).clamp(1e-6, 1 - 1e-6)
            ranked_BFL = score_BFL - torch.log(-torch.log(uniform))
        index_BFM = ranked_BFL.topk(count, dim=-1).indices
        gate_BFM = torch.sigmoid(score_BFL.gather(-1, index_BFM)).clamp(min=1e-4)
        return index_BFM, gate_BFM / gate_BFM.detach()

    def macs(self, windows: int, length: int, count: int, width: int) -> int:
        return windows * length * width


Finder = StrideFinder | CoverageFinder | SaliencyFinder


def make_finder(name: str, width: int) -> Finder:
    """The finder of that name: "stride", "coverage" or "saliency"."""
    if name == "stride":
        return StrideFinder()
    if name == "coverage":
        return CoverageFinder()
    if name == "saliency":
        return SaliencyFinder(width)
    raise SttmError(f"unknown way to find meta tokens {name!r}; choose stride, coverage or saliency")


def take(x_BFLC: Tensor, index_BFM: Tensor) -> Tensor:
    """The tokens of those indices: [B F L C], [B F M] -> [B F M C]."""
    B, F, L, C = x_BFLC.shape
    # Whole rows of one long table: copying them beats gathering channel by channel.
    window_BF1 = torch.arange(B * F, device=x_BFLC.device).view(B, F, 1)
    row_BFM = index_BFM + window_BF1 * L
    return x_BFLC.reshape(B * F * L, C).index_select(0, row_BFM.flatten()).view(*index_BFM.shape, C)


def own_linear(layer: nn.Linear, x_C: Tensor) -> Tensor:
    """`layer` in the precision of its weights, whatever that of `x` is."""
    return nn.functional.linear(x_C.to(layer.weight.dtype), layer.weight, layer.bias)
