"""The motion feature: a linear map of the path of an object through the clip (step 5 of the method).

Legend: B clips, W windows, L tokens in a window, O objects (slots) of a window, N = W*L tokens and R = W*O objects of
the whole clip; T frames, S tokens in a frame; C width, D similarity width, K = 2*T + 1 motion features; 2 = (y, x),
3 = (t, y, x).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sttm.merging.ops import centred, linear, standardised, take
from sttm.merging.reduced import Reduced

# Largest width in which objects are followed; narrow tokens use half of their own.
SIMILARITY_DIM = 64
# Initial temperature of the similarity that objects are followed by: a cosine larger by this counts e times as much.
TAU = 0.1
# Units of the motion map's inputs, in half pictures. The mean places of a new merger vary by 1/32 to 1/16; its steps
# from frame to frame by 1/128 on clips of lips, where they grow two to three times in training, and by 1/20 to 1/6 on
# the synthetic motion clips.
PLACE_UNIT, STEP_UNIT = 1 / 16, 1 / 128
# The inputs of the motion map are multiplied by this. AdamW moves each weight by its learning rate, however small the
# input is (0.2 to 0.6 before): in fewer steps than a training has, the map would hardly act.
GAIN = 16
# A point of a path with this variance (in half pictures squared) counts half: much in its frame resembles the object.
DOUBT = 0.1


class Motion(nn.Module):
    """Adds to each slot a linear map of the path of its object through the clip.

    In every frame the object searches for itself: the point of its path is the centroid of the tokens' likeness to it,
    which is a linear aggregation of their positions, relative to the slot's own centroid. An object is what its slot
    grew from (its meta token); where a method names none, the slot itself. Each point is weighted by how certain it is:
    where much in a frame resembles the object, the point is noise, and slows down all other learning. The map starts at
    zero, so that a model starts as it is without, bit for bit.

    Args:
        dim: width C of the tokens.
        frames_in: frames of the clip, T.
    """

    def __init__(self, dim: int, frames_in: int) -> None:
        super().__init__()
        self.dim, self.frames_in = dim, frames_in
        self.similarity_dim = max(1, min(SIMILARITY_DIM, dim // 2))
        self.similarity = nn.Linear(dim, self.similarity_dim, bias=False)
        self.log_tau = nn.Parameter(torch.tensor([TAU]).log())
        self.map = nn.Linear(2 * frames_in + 1, dim)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x_BWLC: Tensor, position_BWL3: Tensor, reduced: Reduced) -> Reduced:
        """Return the slots with their motion added, and their paths."""
        path_BWOT2, certainty_BWOT1 = self.follow(x_BWLC, position_BWL3, reduced)
        added_BWOC = linear(self.map, self.inputs(path_BWOT2, certainty_BWOT1, reduced.size_BWO))
        x_BWOC = reduced.x_BWOC + added_BWOC.to(reduced.x_BWOC.dtype)
        return replace(reduced, x_BWOC=x_BWOC, path_BWOT2=path_BWOT2)

    def follow(self, x_BWLC: Tensor, position_BWL3: Tensor, reduced: Reduced) -> tuple[Tensor, Tensor]:
        """Return the path of each object: in every frame, the centroid of its likeness relative to its own centroid.

        Returns:
            path_BWOT2, and certainty_BWOT1 from 0 to 1.
        """
        objects, feature_BWLC = reduced.x_BWOC.shape[2], reduced.feature_BWLC
        if feature_BWLC is not None and reduced.meta_BWK is not None:
            unit_BWLD = self._unit(feature_BWLC)
            query_BWOD = take(unit_BWLD, reduced.meta_BWK)
        else:
            token_BWLC, slot_BWOC = standardised(x_BWLC), standardised(reduced.x_BWOC)
            unit_BWLD = self._unit(centred(token_BWLC, token_BWLC))
            query_BWOD = self._unit(centred(slot_BWOC, token_BWLC))
        query_BWOD = query_BWOD * self.log_tau.to(query_BWOD.dtype).neg().exp()
        # [B W O D] -> [B 1 R D], [B W L D] -> [B T S D]; their product: [B T R S]
        query_B1RD, unit_BTSD = query_BWOD.flatten(1, 2)[:, None], self._framed(unit_BWLD)
        alike_BTRS = query_B1RD @ unit_BTSD.transpose(-1, -2)
        likeness_BTRS = alike_BTRS.softmax(-1)
        # Linear aggregation of positions and of their squares: [B T S 4]' x [B T R S]' -> [B T 4 R]
        point_BTS2 = self._framed(position_BWL3[..., 1:]).to(likeness_BTRS.dtype)
        point_BTS4 = torch.cat((point_BTS2, point_BTS2.square()), dim=-1)
        moments_BT4R = point_BTS4.transpose(2, 3) @ likeness_BTRS.transpose(2, 3)
        # [B T 4 R] -> [B R T 4] -> 2 x [B W O T 2]
        moments_BWOT4 = moments_BT4R.permute(0, 3, 1, 2).unflatten(1, (-1, objects))
        mean_BWOT2, square_BWOT2 = moments_BWOT4.split(2, dim=-1)
        variance_BWOT1 = (square_BWOT2 - mean_BWOT2.square()).sum(-1, keepdim=True).clamp(min=0)
        certainty_BWOT1 = self.certainty(variance_BWOT1, alike_BTRS, likeness_BTRS)
        return mean_BWOT2 - reduced.position_BWO3[..., None, 1:], certainty_BWOT1

    def certainty(self, variance_BWOT1: Tensor, alike_BTRS: Tensor, likeness_BTRS: Tensor) -> Tensor:
        """Return how certain each point of a path is: [B W O T 1] from 0 to 1.

        A point is uncertain where the likeness is spread over its frame, and where what was found there differs from
        the object: on a ground of noise some token resembles any object by chance; nothing is spread, but the cosine is
        low.
        """
        cosine_BTR = (likeness_BTRS * alike_BTRS).sum(-1) * self.log_tau.to(alike_BTRS.dtype).exp()
        cosine_BWOT1 = cosine_BTR.transpose(1, 2).reshape(variance_BWOT1.shape)
        return DOUBT / (DOUBT + variance_BWOT1) * cosine_BWOT1.clamp(min=0).square()

    def inputs(self, path_BWOT2: Tensor, certainty_BWOT1: Tensor, size_BWO: Tensor) -> Tensor:
        """Return the inputs of the map: [B W O K]."""
        return motion_input(path_BWOT2, certainty_BWOT1, size_BWO)

    def macs(self, tokens: int, objects: int, among_tokens: bool) -> int:
        """Return the multiply-adds of one clip, of so many tokens and objects; these may be some of the tokens."""
        C, D, K = self.dim, self.similarity_dim, 2 * self.frames_in + 1
        projected = tokens if among_tokens else tokens + objects
        return projected * C * D + objects * tokens * (D + 4) + objects * K * C

    def _framed(self, x_BWLK: Tensor) -> Tensor:
        """Return what the tokens of windows have frame by frame: [B W L K] -> [B T S K]."""
        return x_BWLK.flatten(1, 2).unflatten(1, (self.frames_in, -1))

    def _unit(self, feature_BWLC: Tensor) -> Tensor:
        """Return features as unit vectors of the width in which objects are followed."""
        return normalize(linear(self.similarity, feature_BWLC).to(feature_BWLC.dtype), dim=-1)


def motion_input(path_BWOT2: Tensor, certainty_BWOT1: Tensor, size_BWO: Tensor) -> Tensor:
    """Return the inputs of the motion map: mean place, steps from frame to frame, relative size.

    The points of a path are strongly correlated over time: one direction holds most of their energy. AdamW, which
    scales each weight by itself, then learns that direction and hardly the small differences that
    distinguish motions. Mean and steps carry the same information, well conditioned. Up to a unit they count in
    proportion, beyond it as their logarithm (asinh): steps differ a hundredfold between datasets, and large inputs slow
    down all other learning. The units are constants: nothing depends on the batch, on the number of processes, or on
    how often a forward runs. At last all are multiplied by GAIN, so that an optimizer that moves each weight by its
    learning rate learns the map in a few epochs.

    A step counts by the certainty of both its points, the mean place by that of all. They are weighted behind asinh:
    steps of noise are many units large, and before it a weight would hardly make them smaller.

    Returns:
        motion_BWOK, K = 2*T + 1: mean place (2), steps (2*(T - 1)), log of the size over the clip's mean size (1),
        each times GAIN.
    """
    mean_BWO1 = certainty_BWOT1.mean(-2)
    place_BWO2 = (path_BWOT2 * certainty_BWOT1).mean(-2) / mean_BWO1.clamp(min=1e-6)
    place_BWO2 = (place_BWO2 / PLACE_UNIT).asinh() * mean_BWO1
    both_BWOT1 = certainty_BWOT1[..., 1:, :] * certainty_BWOT1[..., :-1, :]
    step_BWOK = ((path_BWOT2.diff(dim=-2) / STEP_UNIT).asinh() * both_BWOT1).flatten(-2)
    size_BWO1 = (size_BWO / size_BWO.mean((1, 2), keepdim=True)).log()[..., None]
    return GAIN * torch.cat((place_BWO2, step_BWOK, size_BWO1), dim=-1)
