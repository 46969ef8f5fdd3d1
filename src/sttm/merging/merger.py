"""The Spatial-temporal Token Merger: finds the objects of a clip and fuses their tokens in space and in time.

Our reading of Z. Feng, J. Xu, L. Ma, S. Zhang, "Efficient Video Transformers via Spatial-temporal Token Merging for
Action Recognition", ACM TOMM 20(4), 2023, doi 10.1145/3633781. Only the abstract is open and no code was released:
the five steps are the abstract's, their form is ours.

Legend: B clips, T token frames, S tokens in a frame; F frames out (windows), L = T/F*S tokens in a window, M meta
tokens (slots) in a window; N = T*S tokens in, C width; 3 = (t, y, x).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sttm.merging.ops import adds_in_order, centred, standardised
from sttm.merging.reduced import Reduced
from sttm.merging.reducer import TokenReducer
from sttm.merging.selectors import SELECTORS
from sttm.merging.spec import MethodSpec


class TokenMerger(TokenReducer):
    """Merges the tokens of a clip into `frames` x `tokens` slots that stand for its objects.

    Every token goes to the meta token of its window that it is most like, and a slot is the average of its tokens by
    size, so that the size-weighted mean of all tokens does not change. That is all off the shelf (`learned=False`):
    there is nothing to train. Learned (`learned=True`), each slot gets a motion feature as well, a linear map of the
    path of its object through the clip (`Motion`). The map starts at zero, so that a learned merger starts as the one
    off the shelf, bit for bit.

    Args:
        dim: width C of the tokens.
        frames: frames out, F; the frames in must be a multiple of it.
        tokens: slots in each frame out, M.
        frames_in: frames in, T (default: `frames`).
        tokens_in: tokens in each frame in, S; needed for tracing and export.
        grid_in: height and width of a frame in, for a merger whose tokens nothing has merged before.
        learned: adds the motion feature, which has to be trained.
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
    spec = MethodSpec(training="optional", moves=True)
    selectors = SELECTORS
    default_selector = "novelty"
    slot_M: Tensor

    def setup(self) -> None:
        position_FL3 = None if self.positions is None else self.positions().view(self.frames, -1, 3)
        self.selector = SELECTORS[self.selector_name or self.default_selector](self.tokens, self.length, position_FL3)
        self.register_buffer("slot_M", torch.arange(self.tokens), persistent=False)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        """Merge every window in the first four steps of the method; the fifth is `Motion`."""
        # 1. Meta tokens.
        feature_BFLC = self.features(x_BFLC)
        meta_BFM, cosine_BFML = self.selector(feature_BFLC, position_BFL3)
        reduced = self.fuse(x_BFLC, size_BFL, position_BFL3, meta_BFM, cosine_BFML)
        return replace(reduced, meta_BWK=meta_BFM, feature_BWLC=feature_BFLC)

    def features(self, x_BFLC: Tensor) -> Tensor:
        """Return what tokens are compared by, centred on the window: what all of its tokens share tells nothing."""
        feature_BFLC = standardised(x_BFLC)
        return centred(feature_BFLC, feature_BFLC)

    def fuse(
        self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, meta_BFM: Tensor, cosine_BFML: Tensor
    ) -> Reduced:
        """Return the slots of every window: steps 2 to 4."""
        # 2. Every token goes to the object that it is most similar to, each meta token to its own.
        slot_BFL = cosine_BFML.argmax(2).scatter(-1, meta_BFM, self.slot_M.expand_as(meta_BFM))
        # 3. and 4. Fusion in each frame, then over the frames of the window; as both are weighted by mass, one average.
        # A sum by index is the faster form, where it has a fixed order.
        by_product = not adds_in_order(x_BFLC)
        return Reduced.to_averages(x_BFLC, size_BFL, position_BFL3, slot_BFL, self.tokens, by_product)

    def macs(self, frames: int, tokens: int) -> int:
        # The averages count as products, so that a plan holds on every device; sums by index multiply less.
        length = frames // self.frames * tokens
        return self.selector.macs(self.frames, length, self.dim) + frames * tokens * self.tokens * (self.dim + 3)
