"""Baselines that look at the tokens first: ToMe, DPC-KNN, EViT and STA.

Their papers match tokens by the keys of a block, and weigh them by its attention. Blocks run fused attention and hand
out neither, so all four work on what stands before a block: the tokens themselves, each standardised over its channels.
None keeps slot m at one place in every frame; a backbone that attends over time at each place cannot have them.

Legend: B clips, F windows, L tokens in a window, M slots in a window, A and D tokens in the two halves of a matching,
C width, P prefix tokens; 3 = (t, y, x).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sttm.merging.baselines.simple import Baseline, Reduced, averaged, kept
from sttm.merging.merger import standardised
from sttm.merging.selectors import take

# Neighbours that the density of a token is measured by (as TCFormer has it).
NEIGHBOURS = 5


class ToMe(Baseline):
    """Bipartite soft matching: every second token may join the most similar of the others, the likeliest pairs do.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023. As in the paper: alternating halves, cosine
    similarity, the r best edges, means by size, size-proportional attention, about the same r in every block and at
    most half of the tokens; on video, matching over the whole clip. Different: it stands before a block, not between
    its attention and its perceptron; similarity is of the tokens, not of the keys (which the paper finds better); the
    tokens that are left stay in their order. Asked for less than half, it matches in several rounds.
    """

    name = "tome"

    def _rounds(self, length: int) -> Iterator[tuple[int, int]]:
        """(tokens before, tokens after) of every round."""
        while length > self.tokens:
            after = max(self.tokens, length - length // 2)
            yield length, after
            length = after

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        L = x_BFLC.shape[2]
        found = Reduced(x_BFLC, size_BFL, position_BFL3)
        slot_BFL = torch.arange(L, device=x_BFLC.device).expand_as(size_BFL)
        for before, after in self._rounds(L):
            step_BFL = _match(found.x_BFMC, before - after)
            found = averaged(found.x_BFMC, found.size_BFM, found.position_BFM3, step_BFL, after)
            slot_BFL = step_BFL.gather(-1, slot_BFL)
        found.slot_BFL = slot_BFL
        return found

    def macs(self, frames: int, tokens: int) -> int:
        pairs = sum((before + 1) // 2 * (before // 2) for before, _ in self._rounds(frames * tokens // self.windows))
        return self.windows * pairs * self.dim


@torch.no_grad()
def _match(x_BFLC: Tensor, merges: int) -> Tensor:
    """Where each token goes when `merges` of the even ones join an odd one: [B F L], the rest in their order."""
    unit_BFLC = normalize(standardised(x_BFLC), dim=-1)
    cosine_BFAD = unit_BFLC[..., ::2, :] @ unit_BFLC[..., 1::2, :].transpose(-1, -2)
    best_BFA, partner_BFA = cosine_BFAD.max(-1)
    joins_BFA = torch.zeros_like(best_BFA, dtype=torch.bool)
    joins_BFA = joins_BFA.scatter(-1, best_BFA.topk(merges).indices, True)
    # Even and odd again side by side; an odd token never joins.
    odd_BFD = joins_BFA.new_zeros(unit_BFLC[..., 1::2, 0].shape)
    joins_BFL, partner_BFL = _interleave(joins_BFA, odd_BFD), _interleave(2 * partner_BFA + 1, odd_BFD.long())
    number_BFL = (~joins_BFL).long().cumsum(-1) - 1
    return torch.where(joins_BFL, number_BFL.gather(-1, partner_BFL), number_BFL)


def _interleave(even_BFA: Tensor, odd_BFD: Tensor) -> Tensor:
    whole_BFL = even_BFA.new_zeros(*even_BFA.shape[:-1], even_BFA.shape[-1] + odd_BFD.shape[-1])
    whole_BFL[..., ::2], whole_BFL[..., 1::2] = even_BFA, odd_BFD
    return whole_BFL


class DensityPeaks(Baseline):
    """Clusters around tokens that lie densely and far from any denser one (DPC-KNN); every token joins its nearest.

    Source: Du, Ding, Jia, "Study on density peaks clustering based on k-nearest neighbors and principal component
    analysis", 2016, as TCFormer merges by it: Zeng et al., "Not All Tokens Are Equal", CVPR 2022. As there: density
    from the 5 nearest, exp(-mean squared distance); distance to the nearest denser token (for the densest, the farthest
    of all); centres by the product. Different: squared distances are taken per channel, or densities would all be
    zero; means are by size, as there is no learned importance; a window of two frames takes the place of the image.
    """

    name = "dpcknn"

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        return averaged(x_BFLC, size_BFL, position_BFL3, self._clusters(x_BFLC), self.tokens)

    @torch.no_grad()
    def _clusters(self, x_BFLC: Tensor) -> Tensor:
        """The cluster of every token: [B F L]."""
        feature_BFLC = standardised(x_BFLC)
        L, C = feature_BFLC.shape[-2:]
        square_BFL = feature_BFLC.square().sum(-1)
        product_BFLL = feature_BFLC @ feature_BFLC.transpose(-1, -2)
        apart_BFLL = (square_BFL[..., None] + square_BFL[..., None, :] - 2 * product_BFLL).clamp(min=0) / C
        itself_LL = torch.eye(L, dtype=torch.bool, device=x_BFLC.device)
        others_BFLL = apart_BFLL.masked_fill(itself_LL, torch.inf)
        near_BFLK = others_BFLL.topk(max(1, min(NEIGHBOURS, L - 1)), largest=False).values
        density_BFL = (-near_BFLK.mean(-1)).exp()
        denser_BFLL = density_BFL[..., None, :] > density_BFL[..., None]
        above_BFL = apart_BFLL.masked_fill(~denser_BFLL, torch.inf).amin(-1)
        above_BFL = torch.where(denser_BFLL.any(-1), above_BFL, apart_BFLL.amax(-1)).sqrt()
        centre_BFM = (density_BFL * above_BFL).topk(self.tokens).indices
        # A centre stays in its own cluster, whatever lies on the same spot.
        own_BFLL = apart_BFLL.masked_fill(itself_LL, -1)
        return own_BFLL.gather(-1, centre_BFM[..., None, :].expand(-1, -1, L, -1)).argmin(-1)

    def macs(self, frames: int, tokens: int) -> int:
        return (frames * tokens) ** 2 // self.windows * self.dim


class EViT(Baseline):
    """Keeps the tokens that the class token attends to most, and fuses all others into one by their attention.

    Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    ICLR 2022. As in the paper: the most attended tokens stay as they are, one token more is the average of the rest by
    attention, and counts as one; over the whole clip. Different: attention is one head over the standardised tokens,
    softmax(class . token / sqrt(C)), with the mean token in place of the class token where a model has none (ours: the
    paper has only models with one); it stands before a block, not inside; weights of the rest sum to one; two
    reductions, not three, at the places where the merger's are.
    """

    name = "evit"

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        feature_BFLC = standardised(x_BFLC)
        if prefix_BPC is None:
            query_BF1C = feature_BFLC.mean(-2, keepdim=True)
        else:
            query_BF1C = standardised(prefix_BPC[:, None, :1]).expand(-1, self.windows, -1, -1)
        logit_BFL = (feature_BFLC @ query_BF1C.transpose(-1, -2)).squeeze(-1) / self.dim**0.5
        meta_BFK = logit_BFL.topk(self.tokens - 1).indices.sort(-1).values
        stays_BFL = torch.zeros_like(logit_BFL, dtype=torch.bool).scatter(-1, meta_BFK, True)
        weight_BF1L = logit_BFL.masked_fill(stays_BFL, -torch.inf).softmax(-1)[..., None, :]
        stay = kept(x_BFLC, position_BFL3, meta_BFK)
        x_BFMC = torch.cat((stay.x_BFMC, weight_BF1L.to(x_BFLC.dtype) @ x_BFLC), dim=-2)
        position_BFM3 = torch.cat((stay.position_BFM3, weight_BF1L.to(position_BFL3.dtype) @ position_BFL3), dim=-2)
        size_BFM = torch.ones_like(position_BFM3[..., 0])
        return Reduced(x_BFMC, size_BFM, position_BFM3, meta_BFM=meta_BFK, rest=self.tokens - 1)

    def macs(self, frames: int, tokens: int) -> int:
        return frames * tokens * (2 * self.dim + 3)


class STA(Baseline):
    """Drops from frame to frame what has been seen before and is active least.

    Each kept token of a frame passes its score on to the tokens of the next by similarity (a softmax over them); what
    gathers a high score there is an old acquaintance. Weighed by one less its activation, the highest are dropped.

    Source: Ding et al., "Prune Spatio-temporal Tokens by Semantic-aware Temporal Accumulation", ICCV 2023; formulas
    checked against the authors' published program, none of it used. As there: cosine similarity, the softmax without
    temperature, activation as the sum of magnitudes scaled to [0, 1] in each frame, as many tokens from each frame, the
    first frame thinned by ToMe's matching (its even tokens, the most similar first), and two frames to a step in later
    stages. Different: tokens, not keys; two stages, not three; always forward in time, where the paper alternates;
    where more than half are to go, the first frame's odd tokens follow its even ones.
    """

    name = "sta"

    @torch.no_grad()
    def _keep(self, x_BFLC: Tensor) -> Tensor:
        """The tokens that stay, in their order: [B F M]."""
        unit_BFLC = normalize(standardised(x_BFLC), dim=-1)
        active_BFL = x_BFLC.to(unit_BFLC.dtype).abs().sum(-1)
        least_BF1, most_BF1 = active_BFL.amin(-1, keepdim=True), active_BFL.amax(-1, keepdim=True)
        active_BFL = (active_BFL - least_BF1) / (most_BF1 - least_BF1).clamp(min=torch.finfo(unit_BFLC.dtype).tiny)
        meta_BM = self._lowest(_alike_in_frame(unit_BFLC[:, 0]))
        score_BM1 = torch.ones_like(meta_BM, dtype=unit_BFLC.dtype)[..., None] / self.tokens
        metas = [meta_BM]
        for frame in range(1, x_BFLC.shape[1]):
            before_BMC = take(unit_BFLC[:, frame - 1 : frame], meta_BM[:, None])[:, 0]
            flow_BLM = (unit_BFLC[:, frame] @ before_BMC.transpose(-1, -2)).softmax(1)
            seen_BL1 = flow_BLM @ score_BM1
            meta_BM = self._lowest(seen_BL1.squeeze(-1) * (1 - active_BFL[:, frame]))
            score_BM1 = seen_BL1.gather(1, meta_BM[..., None])
            score_BM1 = score_BM1 / score_BM1.sum(1, keepdim=True)
            metas.append(meta_BM)
        return torch.stack(metas, dim=1)

    def _lowest(self, score_BL: Tensor) -> Tensor:
        return score_BL.topk(self.tokens, largest=False).indices.sort(-1).values

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        return kept(x_BFLC, position_BFL3, self._keep(x_BFLC))

    def macs(self, frames: int, tokens: int) -> int:
        length = frames * tokens // self.windows
        first = (length + 1) // 2 * (length // 2) * self.dim
        return first + (self.windows - 1) * length * self.tokens * (self.dim + 1)


def _alike_in_frame(unit_BLC: Tensor) -> Tensor:
    """How soon each token of a first frame is to go: even ones by their likeness to the odd, then odd ones: [B L]."""
    if unit_BLC.shape[1] == 1:
        return unit_BLC.new_zeros(unit_BLC.shape[:2])
    cosine_BAD = unit_BLC[:, ::2] @ unit_BLC[:, 1::2].transpose(-1, -2)
    # Beyond any cosine of an odd one.
    return _interleave(cosine_BAD.amax(2) + 4, cosine_BAD.amax(1))
