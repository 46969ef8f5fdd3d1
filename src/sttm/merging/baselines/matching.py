"""Baselines that merge tokens of like features: ToMe, PiToMe, drop-then-merge and DPC-KNN.

None keeps slot m at one position in every frame, so a backbone with divided attention over time cannot have them.

Legend: B clips, F windows, L tokens in a window, M slots in a window, R tokens that join another, A and D tokens in the
two halves of a matching, C width, P prefix tokens, E width of what is compared; 3 = (t, y, x).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sttm.merging.baselines.simple import dropped
from sttm.merging.ops import Table, averages, standardised
from sttm.merging.reduced import Reduced
from sttm.merging.reducer import TokenReducer
from sttm.merging.selectors import StrideSelector
from sttm.merging.spec import WHOLE_CLIP, MethodSpec

# Neighbours that the density of a token is measured by, itself the first of them (as in TCFormer).
NEIGHBOURS = 5


class ToMe(TokenReducer):
    """Bipartite soft matching: every second token may join the most similar of the others; the most similar pairs do.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023. As in the paper: it sits inside a block,
    between attention and MLP; similarity is the cosine of the keys, averaged over heads (of V-JEPA 2 the rotated keys,
    which attention compares too); the r best edges, means by size, size-proportional attention, about the same r in
    every block and at most half of the tokens; the class token is never merged; on video, matching over the whole clip.
    Different: the halves of a full grid are the tokens whose t + y + x is even and odd, like the squares of a chess
    board, where the paper takes every second token (on a grid of even width that is every second column); later, when
    the tokens are no grid, every second one in their order. The remaining tokens keep their order, where the paper
    puts those of one half first. The class token counts in neither half. Asked for less than half, it matches in
    several rounds. By itself, before a block, it compares the tokens, standardised over their channels.
    """

    name = "tome"
    spec = MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False, everywhere=True, reads="keys", inside="all")

    def setup(self) -> None:
        self.numbers = Table(range, self.length)

    def reduce(
        self,
        x_BFLC: Tensor,
        size_BFL: Tensor,
        position_BFL3: Tensor,
        prefix_BPC: Tensor | None,
        cue_BWLD: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Reduced:
        reduced = Reduced(x_BFLC, size_BFL, position_BFL3)
        number_L = self.numbers(x_BFLC)
        slot_BFL = number_L.expand_as(size_BFL)
        key_BFLE = None if cue_BWLD is None else cue_BWLD.detach().to(size_BFL.dtype)
        for before, after in self._rounds(self.length or x_BFLC.shape[2]):
            feature_BFLE = standardised(reduced.x_BWOC) if key_BFLE is None else key_BFLE
            step_BFL = self.match(feature_BFLE, number_L[:before], before - after, grid)
            if key_BFLE is not None:
                _, (key_BFLE,) = averages(step_BFL, after, reduced.size_BWO, key_BFLE)
            reduced = Reduced.to_averages(reduced.x_BWOC, reduced.size_BWO, reduced.position_BWO3, step_BFL, after)
            slot_BFL, grid = step_BFL.gather(-1, slot_BFL), None
        reduced.slot_BWL, reduced.mass_BWL = slot_BFL, size_BFL
        return reduced

    def macs(self, frames: int, tokens: int) -> int:
        length, width = frames * tokens // self.windows, self.cue_dim or self.dim
        return self.windows * width * sum(self.pairs(before, before - after) for before, after in self._rounds(length))

    def pairs(self, length: int, merges: int) -> int:
        """Return how many pairs of tokens `match` compares."""
        return (length + 1) // 2 * (length // 2)

    @torch.no_grad()
    def match(self, feature_BFLE: Tensor, number_L: Tensor, merges: int, grid: tuple[int, int] | None) -> Tensor:
        """Return the slot of each token when `merges` of the even ones join an odd one: [B F L]."""
        unit_BFLE = normalize(feature_BFLE, dim=-1)
        even_A, odd_D = halves(number_L, grid)
        cosine_BFAD = unit_BFLE.index_select(-2, even_A) @ unit_BFLE.index_select(-2, odd_D).transpose(-1, -2)
        best_BFA, partner_BFA = cosine_BFAD.max(-1)
        joining_BFR = best_BFA.topk(merges).indices
        return _slots(unit_BFLE[..., 0], even_A[joining_BFR], odd_D[partner_BFA.gather(-1, joining_BFR)])

    def _rounds(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield (tokens before, tokens after) of every round."""
        while length > self.tokens:
            after = max(self.tokens, length - length // 2)
            yield length, after
            length = after


class PiToMe(ToMe):
    """Energy-ordered matching: of the tokens most like all others, every second one joins; the rest is protected.

    Source: Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024. As in the
    paper: the energy of a token is the mean of f over its cosine similarities to all tokens, where f(x) is x from a
    margin on and exp(x - margin) - 1 below; the margin is 0.9 - 0.9 * block / blocks; for r merges, the 2r tokens of
    highest energy, in its order; every second one of them joins the most similar of the others; means by size,
    size-proportional attention; inside a block, by the keys. Different: about the same r in every block, as for `ToMe`,
    where the paper keeps a share of the tokens; over the whole clip; the order of tokens is kept; several rounds where
    more than half are to go. By itself, before a block, it compares the tokens, standardised over their channels.
    """

    name = "pitome"

    def pairs(self, length: int, merges: int) -> int:
        return length**2

    @torch.no_grad()
    def match(self, feature_BFLE: Tensor, number_L: Tensor, merges: int, grid: tuple[int, int] | None) -> Tensor:
        """Return the slot of each token when `merges` tokens of high energy join another: [B F L]."""
        unit_BFLE, margin = normalize(feature_BFLE, dim=-1), 0.9 * (1 - self.depth)
        cosine_BFLL = unit_BFLE @ unit_BFLE.transpose(-1, -2)
        energy_BFL = torch.where(cosine_BFLL >= margin, cosine_BFLL, (cosine_BFLL - margin).exp() - 1).mean(-1)
        similar_BFK = energy_BFL.topk(2 * merges).indices  # K = R + D
        joining_BFR, staying_BFD = similar_BFK[..., ::2], similar_BFK[..., 1::2]
        row_BFRL = cosine_BFLL.gather(-2, joining_BFR[..., None].expand(*joining_BFR.shape, cosine_BFLL.shape[-1]))
        cosine_BFRD = row_BFRL.gather(-1, staying_BFD[..., None, :].expand(*joining_BFR.shape, merges))
        return _slots(energy_BFL, joining_BFR, staying_BFD.gather(-1, cosine_BFRD.argmax(-1)))


class DropMerge(ToMe):
    """Drops tokens before the first block as random drop does, and merges what is left inside a later one as ToMe does.

    Source: ours, a control of what merging adds to dropping. The order is that of ToFu, which prunes in early blocks
    and merges in later ones: Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV
    2024; nothing else is from there. The split: both leave the same share of the tokens that reach them. What is
    dropped is drawn at random in training and on a regular stride in evaluation (see `RandomDrop`); what merges, and
    how, is as in `ToMe`, the kept tokens counting one each. The merging sits half way through the blocks, and earlier
    where under 70 % would be left. A merger that is made without `cue_dim` drops; one with it merges.
    """

    name = "drop_merge"
    spec = MethodSpec(
        (WHOLE_CLIP, WHOLE_CLIP), aligned=False, schedules=((0, 1 / 2), (0, 1 / 4)),
        drops=True, reads="keys", inside="later",
    )  # fmt: skip

    def setup(self) -> None:
        super().setup()
        self.drops = self.cue_dim is None
        self.stride = StrideSelector(self.tokens, self.length)

    def reduce(
        self,
        x_BFLC: Tensor,
        size_BFL: Tensor,
        position_BFL3: Tensor,
        prefix_BPC: Tensor | None,
        cue_BWLD: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Reduced:
        if self.drops:
            return dropped(x_BFLC, position_BFL3, self.stride, at_random=self.training)
        return super().reduce(x_BFLC, size_BFL, position_BFL3, prefix_BPC, cue_BWLD, grid)

    def macs(self, frames: int, tokens: int) -> int:
        return 0 if self.drops else super().macs(frames, tokens)


def halves(number_L: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Return the numbers of the tokens in the two halves of a matching, the even ones first: [A], [D].

    On a full grid of frames of this (height, width) a token is even where t + y + x is; else where its number is. Of
    tokens 2j and 2j + 1 one is even and one odd in both cases.
    """
    first_A = number_L[::2]
    odd_A = torch.zeros_like(first_A)
    if grid is not None:
        height, width = grid
        odd_A = (first_A // (height * width) + first_A // width % height + first_A % width) % 2
    pairs = len(number_L) // 2
    return first_A + odd_A, first_A[:pairs] + 1 - odd_A[:pairs]


def _slots(like_BFL: Tensor, joining_BFR: Tensor, partner_BFR: Tensor) -> Tensor:
    """Return the slot of each token, in order, when those that join go to the slot of their partner: [B F L]."""
    joins_BFL = torch.zeros_like(like_BFL).scatter(-1, joining_BFR, 1.0).bool()
    partner_BFL = torch.zeros_like(like_BFL, dtype=torch.long).scatter(-1, joining_BFR, partner_BFR)
    number_BFL = (~joins_BFL).long().cumsum(-1) - 1
    return torch.where(joins_BFL, number_BFL.gather(-1, partner_BFL), number_BFL)


class DensityPeaks(TokenReducer):
    """Clusters around tokens of high density that are far from any denser one (DPC-KNN); each token joins its nearest.

    Source: Du, Ding, Jia, "Study on density peaks clustering based on k-nearest neighbors and principal component
    analysis", 2016, as TCFormer merges by it: Zeng et al., "Not All Tokens Are Equal", CVPR 2022. As there: normalised
    tokens; distances divided by the root of the width; density exp(-mean squared distance) from the 5 nearest, of which
    the token itself is one; distance to the nearest denser token, and for the densest the greatest distance of the
    clip; centres by the product; every token joins the nearest centre. Different: no noise that breaks ties, so that
    equal clips give equal answers; means are by size, as there is no learned importance; a window of two frames takes
    the place of the image.
    """

    name = "dpcknn"
    spec = MethodSpec(aligned=False)

    def setup(self) -> None:
        self.numbers = Table(range, self.length)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        return Reduced.to_averages(x_BFLC, size_BFL, position_BFL3, self._clusters(x_BFLC), self.tokens)

    def macs(self, frames: int, tokens: int) -> int:
        return (frames * tokens) ** 2 // self.windows * self.dim

    @torch.no_grad()
    def _clusters(self, x_BFLC: Tensor) -> Tensor:
        """Return the cluster of every token: [B F L]."""
        feature_BFLC = standardised(x_BFLC)
        square_BFL = feature_BFLC.square().sum(-1)
        product_BFLL = feature_BFLC @ feature_BFLC.transpose(-1, -2)
        distance_BFLL = (square_BFL[..., None] + square_BFL[..., None, :] - 2 * product_BFLL).clamp(min=0) / self.dim
        number_L = self.numbers(x_BFLC)
        # Below any other distance: a token is its own nearest, and a centre stays in its own cluster even where another
        # one has the same features.
        own_BFLL = distance_BFLL.masked_fill(number_L[:, None] == number_L, -1)
        near_BFLK = own_BFLL.topk(min(NEIGHBOURS, self.length or x_BFLC.shape[2]), largest=False).values
        density_BFL = (-near_BFLK.clamp(min=0).mean(-1)).exp()
        denser_BFLL = density_BFL[..., None, :] > density_BFL[..., None]
        greatest_B111 = distance_BFLL.amax((1, 2, 3), keepdim=True)
        above_BFL = torch.where(denser_BFLL, distance_BFLL, greatest_B111).amin(-1).sqrt()
        centre_BFM = (density_BFL * above_BFL).topk(self.tokens).indices
        return own_BFLL.gather(-1, centre_BFM[..., None, :].expand(-1, -1, len(number_L), -1)).argmin(-1)
