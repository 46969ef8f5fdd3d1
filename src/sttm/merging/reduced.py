"""What a reducer makes of the tokens of every window: the slots, and which token went to which.

Legend: B clips, W windows, L tokens in a window, O slots of a window, K tokens kept, T frames, C width; 3 = (t, y, x),
2 = (y, x).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.ops import averages, averages_by_share, take


@dataclass
class Reduced:
    """The slots of every window, and which token went to which: by slot, by share, or by the tokens kept.

    Attributes:
        x_BWOC, size_BWO, position_BWO3: the slots.
        slot_BWL: the slot of each token.
        share_BWOL: or the share that each slot has of each token; the largest counts.
        meta_BWK: the token that each slot grew from. Where it is all that is given, those tokens went to the first K
            slots and all others to slot `rest`.
        rest: -1 where the other tokens are dropped.
        path_BWOT2: the path of each slot (see `MergeMap.trajectory`).
        mass_BWL: what each token counts in the average that its slot is; None where slots are no averages.
        feature_BWLC: the tokens' features, standardised and then centred on their window. With these and `meta_BWK`
            the motion feature follows the meta tokens; where they are None, the slots.
    """

    x_BWOC: Tensor
    size_BWO: Tensor
    position_BWO3: Tensor
    slot_BWL: Tensor | None = None
    share_BWOL: Tensor | None = None
    meta_BWK: Tensor | None = None
    rest: int = -1
    path_BWOT2: Tensor | None = None
    mass_BWL: Tensor | None = None
    feature_BWLC: Tensor | None = None

    @classmethod
    def to_kept(cls, x_BWLC: Tensor, position_BWL3: Tensor, meta_BWK: Tensor) -> Reduced:
        """Keep these tokens as they are, at size one, and drop all others."""
        size_BWK, place_BWK3 = position_BWL3.new_ones(meta_BWK.shape), take(position_BWL3, meta_BWK)
        mass_BWL = torch.zeros_like(position_BWL3[..., 0]).scatter(-1, meta_BWK, 1.0)
        return cls(take(x_BWLC, meta_BWK), size_BWK, place_BWK3, meta_BWK=meta_BWK, mass_BWL=mass_BWL)

    @classmethod
    def to_averages(
        cls,
        x_BWLC: Tensor,
        size_BWL: Tensor,
        position_BWL3: Tensor,
        slot_BWL: Tensor,
        count: int,
        by_product: bool = False,
    ) -> Reduced:
        """Average the tokens of each of `count` slots by size; `by_product` as a product of matrices."""
        values = x_BWLC, position_BWL3
        if by_product:
            # [B W L] -> [B W O L], of 0 and 1
            share_BWOL = size_BWL.new_zeros(*slot_BWL.shape[:2], count, slot_BWL.shape[2])
            share_BWOL = share_BWOL.scatter(2, slot_BWL[:, :, None], 1.0)
            size_BWO, (x_BWOC, position_BWO3) = averages_by_share(share_BWOL, size_BWL, *values)
        else:
            size_BWO, (x_BWOC, position_BWO3) = averages(slot_BWL, count, size_BWL, *values)
        return cls(x_BWOC, size_BWO, position_BWO3, slot_BWL=slot_BWL, mass_BWL=size_BWL)

    def slots(self, length: int) -> Tensor:
        """Return the slot of each of the `length` tokens of a window, -1 for a dropped one: [B W L]."""
        if self.slot_BWL is not None:
            return self.slot_BWL
        if self.share_BWOL is not None:
            return self.share_BWOL.argmax(2)
        assert self.meta_BWK is not None, "a reducer has to say which token went where"
        number_BWK = torch.arange(self.meta_BWK.shape[2], device=self.meta_BWK.device).expand_as(self.meta_BWK)
        rest_BWL = self.meta_BWK.new_full((*self.meta_BWK.shape[:2], length), self.rest)
        return rest_BWL.scatter(2, self.meta_BWK, number_BWK)
