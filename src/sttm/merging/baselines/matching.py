"""Baselines that compare the tokens' features: ToMe, PiToMe, DPC-KNN, EViT and STA.

Their papers match tokens by the keys of a block, and weight them by its attention. Blocks run fused attention, which
returns neither, so all five work on what comes before a block: the tokens themselves, each standardised over its
channels. None keeps slot m at one position in every frame, so a backbone with divided attention over time cannot have
them.

Legend: B clips, F windows, L tokens in a window, M slots in a window, K tokens kept, A and D tokens in the two halves
of a matching, C width, P prefix tokens; 3 = (t, y, x).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sttm.merging.ops import Table, standardised, take
from sttm.merging.reducer import WHOLE_CLIP, MethodSpec, Reduced, TokenReducer

# Neighbours that the density of a token is measured by, itself the first of them (as in TCFormer).
NEIGHBOURS = 5
# Cosine similarity from which tokens count as alike in PiToMe (in the paper 0.9 - 0.9 * layer / layers; here half way).
MARGIN = 0.45


class ToMe(TokenReducer):
    """Bipartite soft matching: every second token may join the most similar of the others; the most similar pairs do.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023. As in the paper: alternating halves, cosine
    similarity, the r best edges, means by size, size-proportional attention, about the same r in every block and at
    most half of the tokens; on video, matching over the whole clip. Different: it runs before a block, not between
    its attention and its perceptron; similarity is of the tokens, not of the keys (which the paper finds better); the
    remaining tokens keep their order. Asked for less than half, it matches in several rounds.
    """

    name = "tome"
    spec = MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False, everywhere=True, gentle=0.7)

    def setup(self) -> None:
        self.numbers = Table(range, self.length)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        reduced = Reduced(x_BFLC, size_BFL, position_BFL3)
        slot_BFL = self.numbers(x_BFLC).expand_as(size_BFL)
        for before, after in self._rounds(self.length or x_BFLC.shape[2]):
            step_BFL = self.match(reduced.x_BWOC, before - after)
            reduced = Reduced.to_averages(reduced.x_BWOC, reduced.size_BWO, reduced.position_BWO3, step_BFL, after)
            slot_BFL = step_BFL.gather(-1, slot_BFL)
        reduced.slot_BWL = slot_BFL
        return reduced

    def macs(self, frames: int, tokens: int) -> int:
        length = frames * tokens // self.windows
        return (
            self.windows * self.dim * sum(self.pairs(before, before - after) for before, after in self._rounds(length))
        )

    def pairs(self, length: int, merges: int) -> int:
        """Return how many pairs of tokens `match` compares."""
        return (length + 1) // 2 * (length // 2)

    @torch.no_grad()
    def match(self, x_BFLC: Tensor, merges: int) -> Tensor:
        """Return the slot of each token when `merges` of the even ones join an odd one: [B F L]."""
        unit_BFLC = normalize(standardised(x_BFLC), dim=-1)
        cosine_BFAD = unit_BFLC[..., ::2, :] @ unit_BFLC[..., 1::2, :].transpose(-1, -2)
        best_BFA, partner_BFA = cosine_BFAD.max(-1)
        joins_BFA = torch.zeros_like(best_BFA).scatter(-1, best_BFA.topk(merges).indices, 1.0).bool()
        # An odd token never joins, and has no partner.
        none_BFD = torch.zeros_like(partner_BFA[..., : x_BFLC.shape[2] // 2])
        joins_BFL, partner_BFL = _interleave(joins_BFA, none_BFD.bool()), _interleave(2 * partner_BFA + 1, none_BFD)
        return _slots(joins_BFL, partner_BFL)

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
    margin on and exp(x - margin) - 1 below; for r merges, the 2r tokens of highest energy, in its order; every second
    one of them joins the most similar of the others; means by size, size-proportional attention. Different: the margin
    is fixed, where the paper's falls from block to block, as a merger does not know its block; otherwise as `ToMe`
    (before a block; tokens, not keys; over the whole clip; the order of tokens is kept; several rounds where more than
    half are to go).
    """

    name = "pitome"

    def pairs(self, length: int, merges: int) -> int:
        return length**2

    @torch.no_grad()
    def match(self, x_BFLC: Tensor, merges: int) -> Tensor:
        """Return the slot of each token when `merges` tokens of high energy join another: [B F L]."""
        unit_BFLC = normalize(standardised(x_BFLC), dim=-1)
        cosine_BFLL = unit_BFLC @ unit_BFLC.transpose(-1, -2)
        energy_BFL = torch.where(cosine_BFLL >= MARGIN, cosine_BFLL, (cosine_BFLL - MARGIN).exp() - 1).mean(-1)
        similar_BFK = energy_BFL.topk(2 * merges).indices  # K = A + D
        joining_BFA, staying_BFD = similar_BFK[..., ::2], similar_BFK[..., 1::2]
        row_BFAL = cosine_BFLL.gather(-2, joining_BFA[..., None].expand(*joining_BFA.shape, cosine_BFLL.shape[-1]))
        cosine_BFAD = row_BFAL.gather(-1, staying_BFD[..., None, :].expand(*joining_BFA.shape, merges))
        partner_BFA = staying_BFD.gather(-1, cosine_BFAD.argmax(-1))
        joins_BFL = torch.zeros_like(energy_BFL).scatter(-1, joining_BFA, 1.0).bool()
        return _slots(joins_BFL, torch.zeros_like(joins_BFL, dtype=torch.long).scatter(-1, joining_BFA, partner_BFA))


def _slots(joins_BFL: Tensor, partner_BFL: Tensor) -> Tensor:
    """Return the slot of each token, in order, when those that join go to the slot of their partner: [B F L]."""
    number_BFL = (~joins_BFL).long().cumsum(-1) - 1
    return torch.where(joins_BFL, number_BFL.gather(-1, partner_BFL), number_BFL)


def _interleave(even_BFA: Tensor, odd_BFD: Tensor) -> Tensor:
    """Put the values of even and odd tokens into the order of the tokens: [... A], [... D] -> [... A+D]."""
    D = odd_BFD.shape[-1]
    pairs_BFL = torch.stack((even_BFA[..., :D], odd_BFD), dim=-1).flatten(-2)
    return pairs_BFL if even_BFA.shape[-1] == D else torch.cat((pairs_BFL, even_BFA[..., D:]), dim=-1)


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


class EViT(TokenReducer):
    """Keeps the tokens that the class token attends to most, and fuses all others into one by their attention.

    Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    ICLR 2022. As in the paper: the most attended tokens stay as they are, one token more is the average of the rest by
    attention, and counts as one; over the whole clip. Different: attention is one head over the standardised tokens,
    softmax(class . token / sqrt(C)), with the mean token in place of the class token where a model has none (ours: the
    paper has only models with one); it runs before a block, not inside; weights of the rest sum to one; two
    reductions, not three, before the blocks where the merger's are.
    """

    name = "evit"
    spec = MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        feature_BFLC = standardised(x_BFLC)
        if prefix_BPC is None:
            query_BF1C = feature_BFLC.mean(-2, keepdim=True)
        else:
            query_BF1C = standardised(prefix_BPC[:, None, :1]).expand(-1, self.windows, -1, -1)
        logit_BFL = (feature_BFLC @ query_BF1C.transpose(-1, -2)).squeeze(-1) / self.dim**0.5
        kept_BFK = logit_BFL.topk(self.tokens - 1).indices.sort(-1).values
        stays_BFL = torch.zeros_like(logit_BFL).scatter(-1, kept_BFK, 1.0).bool()
        weight_BF1L = logit_BFL.masked_fill(stays_BFL, -torch.inf).softmax(-1)[..., None, :]
        kept = Reduced.to_kept(x_BFLC, position_BFL3, kept_BFK)
        x_BFMC = torch.cat((kept.x_BWOC, weight_BF1L.to(x_BFLC.dtype) @ x_BFLC), dim=-2)
        # No gradient goes through positions.
        rest_BF13 = weight_BF1L.detach().to(position_BFL3.dtype) @ position_BFL3
        position_BFM3 = torch.cat((kept.position_BWO3, rest_BF13), dim=-2)
        size_BFM = torch.ones_like(position_BFM3[..., 0])
        return Reduced(x_BFMC, size_BFM, position_BFM3, meta_BWK=kept_BFK, rest=self.tokens - 1)

    def macs(self, frames: int, tokens: int) -> int:
        return frames * tokens * (2 * self.dim + 3)


class STA(TokenReducer):
    """Drops from frame to frame the tokens that were seen before and are least active.

    Each token of the first frame, and each kept token of any later one, passes its score on to the tokens of the next
    frame by similarity (a softmax over them); a token that gathers a high score there was seen before. The score is
    weighted by one less the token's activation, and the highest are dropped.

    Source: Ding et al., "Prune Spatio-temporal Tokens by Semantic-aware Temporal Accumulation", ICCV 2023; formulas
    checked against the authors' published program, none of it used. As there: cosine similarity, the softmax without
    temperature, activation as the sum of magnitudes scaled to [0, 1] in each frame, as many tokens from each frame, the
    first frame thinned by ToMe's matching (its even tokens, the most similar first) but passing on the equal scores of
    all its tokens, and two frames to a step in later stages. Different: tokens, not keys; two stages, not three; always forward in time, where the paper alternates;
    where more than half are to go, the first frame's odd tokens follow its even ones.
    """

    name = "sta"
    spec = MethodSpec((1, 2), aligned=False, gentle=0.7, drops=True)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        return Reduced.to_kept(x_BFLC, position_BFL3, self._keep(x_BFLC))

    def macs(self, frames: int, tokens: int) -> int:
        length = frames * tokens // self.windows
        first = (length + 1) // 2 * (length // 2) * self.dim
        passed_on = [length, *[self.tokens] * (self.windows - 2)][: self.windows - 1]
        return first + sum(passed_on) * length * (self.dim + 1)

    @torch.no_grad()
    def _keep(self, x_BFLC: Tensor) -> Tensor:
        """Return the tokens that stay, in their order: [B F M]."""
        unit_BFLC = normalize(standardised(x_BFLC), dim=-1)
        active_BFL = x_BFLC.to(unit_BFLC.dtype).abs().sum(-1)
        least_BF1, most_BF1 = active_BFL.amin(-1, keepdim=True), active_BFL.amax(-1, keepdim=True)
        active_BFL = (active_BFL - least_BF1) / (most_BF1 - least_BF1).clamp(min=torch.finfo(unit_BFLC.dtype).tiny)
        metas = [self._lowest(_redundancy_in_frame(unit_BFLC[:, 0]))]
        # All tokens of the first frame pass the same score on, those that it drops too.
        before_BMC, score_BM1 = unit_BFLC[:, 0], torch.ones_like(unit_BFLC[:, 0, :, :1])
        for frame in range(1, self.windows):
            flow_BLM = (unit_BFLC[:, frame] @ before_BMC.transpose(-1, -2)).softmax(1)
            seen_BL1 = flow_BLM @ score_BM1
            meta_BM = self._lowest(seen_BL1.squeeze(-1) * (1 - active_BFL[:, frame]))
            before_BMC = take(unit_BFLC[:, frame : frame + 1], meta_BM[:, None])[:, 0]
            score_BM1 = seen_BL1.gather(1, meta_BM[..., None])
            score_BM1 = score_BM1 / score_BM1.sum(1, keepdim=True)
            metas.append(meta_BM)
        return torch.stack(metas, dim=1)

    def _lowest(self, score_BL: Tensor) -> Tensor:
        """Return the tokens of the lowest scores, in their order: [B M]."""
        return score_BL.topk(self.tokens, largest=False).indices.sort(-1).values


def _redundancy_in_frame(unit_BLC: Tensor) -> Tensor:
    """Return how redundant each token of a first frame is: even ones by similarity to the odd, above all odd: [B L]."""
    if unit_BLC.shape[1] == 1:
        return torch.zeros_like(unit_BLC[..., 0])
    cosine_BAD = unit_BLC[:, ::2] @ unit_BLC[:, 1::2].transpose(-1, -2)
    # 4 is above any cosine of an odd token.
    return _interleave(cosine_BAD.amax(2) + 4, cosine_BAD.amax(1))
