"""Baselines that keep some tokens and drop or fuse the others: EViT, STA and RLT.

None keeps slot m at one position in every frame, so a backbone with divided attention over time cannot have them.

Legend: B clips, F windows, L tokens in a window, M slots in a window, K tokens kept, A and D even and odd tokens, C
width, P prefix tokens, T frames of a window, S tokens in a frame, D width of what is read; 3 = (t, y, x).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sttm.errors import SttmError
from sttm.merging.ops import standardised, take
from sttm.merging.reduced import Reduced
from sttm.merging.reducer import TokenReducer
from sttm.merging.spec import WHOLE_CLIP, MethodSpec


class EViT(TokenReducer):
    """Keeps the tokens that receive the most attention, and fuses all others into one by the attention they receive.

    Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    ICLR 2022. As in the paper: inside a block, between attention and MLP; the attention of the class token, averaged
    over heads; the most attended tokens stay as they are, one token more is the average of the rest by attention, and
    counts as one; over the whole clip. Different: where a model has no class token, the attention that a token receives
    from all tokens, averaged over them and over heads (ours: the paper has only models with one); weights of the rest
    sum to one, and no gradient goes through them; kept tokens keep their order; two reductions, not three, in the
    blocks where the merger's are.
    """

    name = "evit"
    spec = MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False, reads="attention", inside="all")

    def reduce(
        self,
        x_BFLC: Tensor,
        size_BFL: Tensor,
        position_BFL3: Tensor,
        prefix_BPC: Tensor | None,
        cue_BWLD: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Reduced:
        if cue_BWLD is None:
            raise SttmError(
                "evit needs the attention that each token receives and got tokens without it; "
                "give it as Tokens.cue_BTSD, or merge a model by sttm.apply"
            )
        attention_BFL = cue_BWLD[..., 0].detach().to(size_BFL.dtype)
        kept_BFK = attention_BFL.topk(self.tokens - 1).indices.sort(-1).values
        stays_BFL = torch.zeros_like(attention_BFL).scatter(-1, kept_BFK, 1.0).bool()
        slot_BFL = torch.where(stays_BFL, stays_BFL.long().cumsum(-1) - 1, self.tokens - 1)
        # Attention that rounds to nothing must not leave the fused token without weights.
        weight_BFL = torch.where(stays_BFL, 1.0, attention_BFL + torch.finfo(torch.float32).tiny)
        reduced = Reduced.to_averages(x_BFLC, weight_BFL, position_BFL3, slot_BFL, self.tokens)
        reduced.size_BWO = torch.ones_like(reduced.size_BWO)
        return reduced


class STA(TokenReducer):
    """Drops from frame to frame the tokens that were seen before and are least active.

    Each token of the first frame, and each kept token of any later one, passes its score on to the tokens of the next
    frame by similarity (a softmax over them); a token that gathers a high score there was seen before. The score is
    weighted by one less the token's activation, and the highest are dropped.

    Source: Ding et al., "Prune Spatio-temporal Tokens by Semantic-aware Temporal Accumulation", ICCV 2023; formulas
    checked against the authors' published program, none of it used. As there: cosine similarity, the softmax without
    temperature, activation as the sum of magnitudes scaled to [0, 1] in each frame, as many tokens from each frame, the
    first frame thinned by ToMe's matching (its even tokens, the most similar first) but passing on the equal scores of
    all its tokens, and two frames to a step in later stages. Different: before a block; tokens, not keys; two stages,
    not three; always forward in time, where the paper alternates; where more than half are to go, the first frame's odd
    tokens follow its even ones.
    """

    name = "sta"
    spec = MethodSpec((1, 2), aligned=False, drops=True)

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


class RLT(TokenReducer):
    """Drops the tokens that changed least since the frame before; what is kept stands for the run that it starts.

    Source: Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization", NeurIPS 2024;
    the frames that are compared were checked against the authors' published program, none of it used. As there: before
    the first block, on pixels; the change of a token is the mean absolute difference between its last frame and the
    first frame of the token at its place one token frame before, so that slow motion counts too; all tokens of the
    first frame come first; a kept token with the dropped ones behind it at its place is a run. Different: the number of
    tokens is fixed, so that those that changed least are dropped, where the paper drops all below a threshold, and
    clips differ in length; pixels are those that the model gets, normalised. The length of a run is the size of its
    token, which counts in attention and pooling; the paper adds an embedding of the length that is trained, or nothing.
    Where fewer tokens are to be kept than the first frame has, those that change most into the second frame are, and
    the other places are dropped. By itself, without pixels, it compares the tokens.
    """

    name = "rlt"
    spec = MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False, schedules=(), drops=True, reads="pixels")

    def reduce(
        self,
        x_BFLC: Tensor,
        size_BFL: Tensor,
        position_BFL3: Tensor,
        prefix_BPC: Tensor | None,
        cue_BWLD: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Reduced:
        frames = self.frames_in // self.windows
        seen_BFLD = torch.cat((x_BFLC, x_BFLC), -1) if cue_BWLD is None else cue_BWLD
        change_BFL = self._changes(seen_BFLD.detach().to(size_BFL.dtype), frames)
        kept_BFM = change_BFL.topk(self.tokens).indices.sort(-1).values
        kept_BFL = torch.zeros_like(size_BFL).scatter(-1, kept_BFM, 1.0)
        slot_BFL = self._runs(kept_BFL.bool(), frames)
        length_BFL = torch.where(slot_BFL < 0, 0.0, size_BFL)
        length_BFM = torch.zeros_like(size_BFL[..., : self.tokens]).scatter_add(-1, slot_BFL.clamp(min=0), length_BFL)
        kept = Reduced.to_kept(x_BFLC, position_BFL3, kept_BFM)
        kept.size_BWO, kept.slot_BWL = length_BFM, slot_BFL
        return kept

    def _changes(self, seen_BFLD: Tensor, frames: int) -> Tensor:
        """Return how much each token changed; those of the first frame above all others: [B F L]."""
        first_BFTSD, last_BFTSD = seen_BFLD.unflatten(2, (frames, -1)).chunk(2, dim=-1)
        if frames == 1:
            return torch.zeros_like(seen_BFLD[..., 0])
        change_BFTS = (last_BFTSD[:, :, 1:] - first_BFTSD[:, :, :-1]).abs().mean(-1)
        # Shares of the greatest change, so that 2 more is above them at any scale.
        greatest_BF11 = change_BFTS.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(change_BFTS.dtype).tiny)
        share_BFTS = change_BFTS / greatest_BF11
        return torch.cat((share_BFTS[:, :, :1] + 2, share_BFTS), dim=2).flatten(2)

    def _runs(self, kept_BFL: Tensor, frames: int) -> Tensor:
        """Return the slot of each token: that of the last kept one at its place, -1 where there is none: [B F L]."""
        kept_BFTS = kept_BFL.unflatten(2, (frames, -1))
        number_BFTS = (kept_BFL.long().cumsum(-1) - 1).unflatten(2, (frames, -1))
        slots = [torch.where(kept_BFTS[:, :, 0], number_BFTS[:, :, 0], -1)]
        for frame in range(1, frames):
            slots.append(torch.where(kept_BFTS[:, :, frame], number_BFTS[:, :, frame], slots[-1]))
        return torch.stack(slots, dim=2).flatten(2)


def _redundancy_in_frame(unit_BLC: Tensor) -> Tensor:
    """Return how redundant each token of a first frame is: even ones by similarity to the odd, above all odd: [B L]."""
    if unit_BLC.shape[1] == 1:
        return torch.zeros_like(unit_BLC[..., 0])
    cosine_BAD = unit_BLC[:, ::2] @ unit_BLC[:, 1::2].transpose(-1, -2)
    # 4 is above any cosine of an odd token.
    return _interleave(cosine_BAD.amax(2) + 4, cosine_BAD.amax(1))


def _interleave(even_BFA: Tensor, odd_BFD: Tensor) -> Tensor:
    """Put the values of even and odd tokens into the order of the tokens: [... A], [... D] -> [... A+D]."""
    D = odd_BFD.shape[-1]
    pairs_BFL = torch.stack((even_BFA[..., :D], odd_BFD), dim=-1).flatten(-2)
    return pairs_BFL if even_BFA.shape[-1] == D else torch.cat((pairs_BFL, even_BFA[..., D:]), dim=-1)
