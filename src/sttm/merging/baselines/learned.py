"""Baselines that learn: PatchMerger and TokenLearner, whose slots are soft averages of the tokens.

Legend: B clips, F windows, L tokens in a window, M slots in a window, C width, H hidden width, P prefix tokens;
3 = (t, y, x).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import gelu

from sttm.merging.baselines.simple import Baseline, Reduced
from sttm.merging.merger import standardised
from sttm.merging.selectors import own_linear


def softly(x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, score_BFLM: Tensor) -> Reduced:
    """Slots that each take a softmax over the tokens of their window; they share the window's size equally."""
    weight_BFML = score_BFLM.transpose(-1, -2).softmax(-1)
    M = weight_BFML.shape[-2]
    size_BFM = (size_BFL.sum(-1, keepdim=True) / M).expand(-1, -1, M)
    position_BFM3 = weight_BFML.to(position_BFL3.dtype) @ position_BFL3
    return Reduced(weight_BFML.to(x_BFLC.dtype) @ x_BFLC, size_BFM, position_BFM3, weight_BFML=weight_BFML)


class PatchMerger(Baseline):
    """M learned queries, each of which pools the tokens of a window: softmax(W x^T) x.

    Source: Renggli et al., "Learning to Merge Tokens in Vision Transformers", 2022. As in the paper: the formula, and
    no parameters but W. Different: the tokens are standardised for the scores (not for the average), so that the
    softmax does not depend on the scale of the residual stream; a window of two frames takes the place of the image.
    """

    name = "patchmerger"
    needs_training = True

    def __init__(self, dim: int, frames: int, tokens: int, **options: Any) -> None:
        super().__init__(dim, frames, tokens, **options)  # options: those of every Baseline
        self.query = nn.Linear(dim, tokens, bias=False)
        nn.init.normal_(self.query.weight, std=dim**-0.5)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        score_BFLM = own_linear(self.query, standardised(x_BFLC)).to(size_BFL.dtype)
        return softly(x_BFLC, size_BFL, position_BFL3, score_BFLM)

    def macs(self, frames: int, tokens: int) -> int:
        return frames * tokens * self.tokens * (2 * self.dim + 3)


class TokenLearner(Baseline):
    """M attention maps over the tokens of each frame from a small perceptron, one pooled token a map.

    Source: Ryoo et al., "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?", NeurIPS 2021, in the form
    of its authors' later version: a perceptron of hidden width 64 with GELU instead of convolutions, and a softmax over
    the tokens instead of a sigmoid (with which a constant clip would not stay constant). As in the paper: frame by
    frame, the same perceptron for all. Different: biases and scales that a softmax over tokens, or the next linear map,
    takes up anyway are left out; TokenFuser, which brings the tokens back, has no place in a classifier.
    """

    name = "tokenlearner"
    needs_training = True
    HIDDEN: ClassVar[int] = 64

    def __init__(self, dim: int, frames: int, tokens: int, **options: Any) -> None:
        super().__init__(dim, frames, tokens, **options)  # options: those of every Baseline
        self.hidden = nn.Linear(dim, self.HIDDEN)
        self.maps = nn.Linear(self.HIDDEN, tokens, bias=False)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        hidden_BFLH = gelu(own_linear(self.hidden, standardised(x_BFLC)))
        return softly(x_BFLC, size_BFL, position_BFL3, own_linear(self.maps, hidden_BFLH).to(size_BFL.dtype))

    def macs(self, frames: int, tokens: int) -> int:
        return frames * tokens * (self.dim * self.HIDDEN + self.tokens * (self.HIDDEN + self.dim + 3))
