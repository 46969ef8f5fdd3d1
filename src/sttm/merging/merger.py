"""The Spatial-temporal Token Merger: finds the objects of a clip and fuses their tokens in space and in time.

Our reading of Z. Feng, J. Xu, L. Ma, S. Zhang, "Efficient Video Transformers via Spatial-temporal Token Merging for
Action Recognition", ACM TOMM 20(4), 2023, doi 10.1145/3633781. Only the abstract is open and no code was released:
the five steps are the abstract's, their form is ours.

Legend: B clips, T token frames, S tokens in a frame; F frames out (windows), L = T/F*S tokens in a window, M meta
tokens (slots) in a window; N = T*S tokens in, O = F*M objects; C width, D similarity width, K = 2*T + 1 motion
features; 3 = (t, y, x), 2 = (y, x).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sttm.merging.ops import linear, standardised, take
from sttm.merging.reducer import MethodSpec, Reduced, TokenReducer
from sttm.merging.selectors import SELECTORS

# Largest width in which a learned merger follows objects; narrow tokens use half of their own.
SIMILARITY_DIM = 64
# Initial temperature of the similarity that objects are followed by: a cosine larger by this counts e times as much.
TAU = 0.1
# Units of the motion map's inputs, in half pictures. The mean places of a new merger vary by 1/32 to 1/16; its steps
# from frame to frame by 1/128 on clips of lips, where they grow two to three times in training, and by 1/20 to 1/6 on
# the synthetic motion clips.
PLACE_UNIT, STEP_UNIT = 1 / 16, 1 / 128
# A point of a path with this variance (in half pictures squared) counts half: much in its frame resembles the object.
DOUBT = 0.1


class TokenMerger(TokenReducer):
    """Merges the tokens of a clip into `frames` x `tokens` slots that stand for its objects.

    Every token goes to the meta token of its window that it is most like, and a slot is the average of its tokens by
    size, so that the size-weighted mean of all tokens does not change. That is all off the shelf (`learned=False`):
    there is nothing to train. Learned (`learned=True`), each slot gets a motion feature as well: a linear map of the
    path of its object through the clip, computed from the tokens' positions, as its mean place and its steps from frame
    to frame. Each point of the path is weighted by how certain it is: where much in a frame resembles the object, the
    point is noise, and slows down all other learning. The map starts at zero, so that a learned merger starts as the
    one off the shelf, bit for bit.

    Args:
        dim: width C of the tokens.
        frames: frames out, F; the frames in must be a multiple of it.
        tokens: slots in each frame out, M.
        frames_in: frames in, T; needed by the learned motion map (default: `frames`).
        tokens_in: tokens in each frame in, S; needed for tracing and export.
        learned: adds the trainable parts.
        selector: how meta tokens are chosen: "novelty" (the default), or "stride" where all windows have to keep the
            same positions.

    Example:
        >>> merger = TokenMerger(dim=32, frames=4, tokens=8, frames_in=8)
        >>> merged, merge_map = merger(Tokens.of_grid(torch.randn(2, 8, 36, 32), height=6, width=6))
        >>> merged.x_BTSC.shape, int(merged.size_BTS.sum())
        (torch.Size([2, 4, 8, 32]), 576)

    Raises:
        SttmError: for sizes that no grid of tokens can have, or an unknown selector.
    """

    name = "sttm"
    spec = MethodSpec(training="optional")
    selectors = SELECTORS
    default_selector = "novelty"
    slot_M: Tensor

    def setup(self) -> None:
        self.similarity_dim = max(1, min(SIMILARITY_DIM, self.dim // 2))
        self.selector = SELECTORS[self.selector_name or self.default_selector](self.tokens, self.length)
        self.register_buffer("slot_M", torch.arange(self.tokens), persistent=False)
        if self.learned:
            self.similarity = nn.Linear(self.dim, self.similarity_dim, bias=False)
            self.log_tau = nn.Parameter(torch.tensor([TAU]).log())
            self.motion = nn.Linear(2 * self.frames_in + 1, self.dim)
            nn.init.zeros_(self.motion.weight)
            nn.init.zeros_(self.motion.bias)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        """Merge every window in the five steps of the method."""
        # 1. Meta tokens, in features centred on the window: what all of its tokens share carries no information.
        feature_BFLC = standardised(x_BFLC)
        feature_BFLC = feature_BFLC - feature_BFLC.mean(2, keepdim=True)
        meta_BFM, cosine_BFML = self.selector(feature_BFLC, position_BFL3)
        # 2. Similarity of every token of a window with its objects.
        share_BFML = self._shares(cosine_BFML, meta_BFM)
        # 3. and 4. Fusion in each frame, then over the frames of the window; as both are weighted by mass, one average.
        mass_BFML = share_BFML * size_BFL[:, :, None]
        size_BFM = mass_BFML.sum(-1)
        weight_BFML = mass_BFML * size_BFM.reciprocal()[..., None]
        z_BFMC = weight_BFML.to(x_BFLC.dtype) @ x_BFLC
        centroid_BFM3 = weight_BFML @ position_BFL3
        # 5. Motion: the object's path through the whole clip, relative to its centroid.
        path_BFMT2 = None
        if self.learned:
            # [B F L 3] -> [B T S 3]
            position_BTS3 = position_BFL3.flatten(1, 2).unflatten(1, (self.frames_in, -1))
            path_BFMT2, certainty_BFMT1 = self._path(feature_BFLC, meta_BFM, position_BTS3, centroid_BFM3)
            z_BFMC = self._motion(z_BFMC, path_BFMT2 * certainty_BFMT1, size_BFM)
        return Reduced(z_BFMC, size_BFM, centroid_BFM3, share_BWOL=share_BFML, meta_BWK=meta_BFM, path_BWOT2=path_BFMT2)

    def macs(self, frames: int, tokens: int) -> int:
        C, D, M, N, slots = self.dim, self.similarity_dim, self.tokens, frames * tokens, self.frames * self.tokens
        merged = self.selector.macs(self.frames, frames // self.frames * tokens, C) + N * M * (C + 3)
        if not self.learned:
            return merged
        followed = N * C * D + slots * N * (D + 4)
        return merged + followed + slots * C * (2 * self.frames_in + 1)

    def _shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        """Assign each token to its most similar object, and each meta token to its own: shares of 0 and 1 [B F M L]."""
        slot_BFL = cosine_BFML.max(2).indices.scatter(-1, meta_BFM, self.slot_M.expand_as(meta_BFM))
        return torch.zeros_like(cosine_BFML).scatter(2, slot_BFL[:, :, None], 1.0)

    def _path(
        self, feature_BFLC: Tensor, meta_BFM: Tensor, position_BTS3: Tensor, centroid_BFM3: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the path of each object: in every frame, the centroid of its likeness relative to its own centroid.

        Returns:
            path_BFMT2, and certainty_BFMT1 between 0 and 1, which falls with the variance of the likeness.
        """
        unit_BFLD = normalize(linear(self.similarity, feature_BFLC).to(feature_BFLC.dtype), dim=-1)
        query_BOD = take(unit_BFLD, meta_BFM).flatten(1, 2) * self.log_tau.to(unit_BFLD.dtype).neg().exp()
        # [B O D] x [B D N] -> [B O N] -> [B T O S]: in every frame the object searches for itself.
        alike_BON = query_BOD @ unit_BFLD.flatten(1, 2).transpose(1, 2)
        likeness_BTOS = alike_BON.unflatten(2, (self.frames_in, -1)).softmax(-1).transpose(1, 2)
        # Linear aggregation of positions and of their squares: [B T O 4] -> [B F M T 4] -> 2 x [B F M T 2]
        point_BTS2 = position_BTS3[..., 1:].to(likeness_BTOS.dtype)
        moments_BTO4 = likeness_BTOS @ torch.cat((point_BTS2, point_BTS2.square()), dim=-1)
        moments_BFMT4 = moments_BTO4.transpose(1, 2).unflatten(1, (self.frames, self.tokens))
        mean_BFMT2, square_BFMT2 = moments_BFMT4.split(2, dim=-1)
        variance_BFMT1 = (square_BFMT2 - mean_BFMT2.square()).sum(-1, keepdim=True).clamp(min=0)
        return mean_BFMT2 - centroid_BFM3[..., None, 1:], DOUBT / (DOUBT + variance_BFMT1)

    def _motion(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        """Return the slots plus their motion: a linear map of path and size."""
        return z_BFMC + linear(self.motion, motion_input(path_BFMT2, size_BFM)).to(z_BFMC.dtype)


def motion_input(path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
    """Return the inputs of the motion map: mean place, steps from frame to frame, relative size.

    The points of a path are strongly correlated over time: one direction holds most of their energy. AdamW, which
    scales each weight by itself, then learns that direction and hardly the small differences that
    distinguish motions. Mean and steps carry the same information, well conditioned. Up to a unit they count in
    proportion, beyond it as their logarithm (asinh): steps differ a hundredfold between datasets, and large inputs slow
    down all other learning. The units are constants: nothing depends on the batch, on the number of processes, or on
    how often a forward runs.

    Returns:
        motion_BFMK, K = 2*T + 1: mean place (2), steps (2*(T - 1)), log of the size over the clip's mean size (1).
    """
    place_BFM2 = (path_BFMT2.mean(-2) / PLACE_UNIT).asinh()
    step_BFMK = (path_BFMT2.diff(dim=-2).flatten(-2) / STEP_UNIT).asinh()
    size_BFM1 = (size_BFM / size_BFM.mean((1, 2), keepdim=True)).log()[..., None]
    return torch.cat((place_BFM2, step_BFMK, size_BFM1), dim=-1)
