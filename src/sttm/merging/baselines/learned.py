"""Baselines with parameters: PatchMerger and TokenLearner, whose slots are soft averages of the tokens.

Legend: B clips, F windows, L tokens in a window, M slots in a window, C width, H hidden width, P prefix tokens;
3 = (t, y, x).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import gelu

from sttm.merging.ops import linear, standardised
from sttm.merging.reduced import Reduced
from sttm.merging.reducer import TokenReducer
from sttm.merging.spec import MethodSpec


class SoftPooling(TokenReducer):
    """Slots that each take a softmax of learned scores over the tokens of their window and share its size equally."""

    @abstractmethod
    def scores(self, x_BFLC: Tensor) -> Tensor:
        """Return the score of each token for each slot: [B F L M]."""

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        score_BFLM = self.scores(x_BFLC).to(size_BFL.dtype)
        weight_BFML = score_BFLM.transpose(-1, -2).softmax(-1)
        size_BFM = (size_BFL.sum(-1, keepdim=True) / self.tokens).expand(-1, -1, self.tokens)
        # No gradient goes through positions.
        position_BFM3 = weight_BFML.detach().to(position_BFL3.dtype) @ position_BFL3
        return Reduced(weight_BFML.to(x_BFLC.dtype) @ x_BFLC, size_BFM, position_BFM3, share_BWOL=weight_BFML)


class PatchMerger(SoftPooling):
    """M learned queries, each of which pools the tokens of a window: softmax(W LN(x)^T / sqrt(C)) x.

    Source: Renggli et al., "Learning to Merge Tokens in Vision Transformers", 2022. As in the paper: the softmax over
    the tokens for each query, and an average of the tokens by it. Scale, layer norm and queries that start as
    standard normal numbers are those of its usual implementation. Different: the average is of the tokens themselves,
    not of the normalised ones, so that the slots keep the scale of the residual stream that a trained model expects;
    the norm has no bias, which a softmax over the tokens absorbs; a window of two frames takes the place of the image.
    """

    name = "patchmerger"
    spec = MethodSpec(sized=False, training="required")

    def setup(self) -> None:
        self.norm = nn.LayerNorm(self.dim, bias=False)
        self.query = nn.Linear(self.dim, self.tokens, bias=False)
        nn.init.normal_(self.query.weight)

    def scores(self, x_BFLC: Tensor) -> Tensor:
        return linear(self.query, linear(self.norm, x_BFLC)) * self.dim**-0.5

    def macs(self, frames: int, tokens: int) -> int:
        return frames * tokens * self.tokens * (2 * self.dim + 3)


class TokenLearner(SoftPooling):
    """M attention maps over the tokens of each frame from a small perceptron, one pooled token a map.

    Source: Ryoo et al., "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?", NeurIPS 2021, in the form
    of its authors' later version: a perceptron of hidden width 64 with GELU instead of convolutions, and a softmax over
    the tokens instead of a sigmoid (with which a constant clip would not stay constant). As in the paper: frame by
    frame, the same perceptron for all. Different: biases and scales that a softmax over tokens, or the next linear map,
    absorbs anyway are left out; TokenFuser, which brings the tokens back, has no use in a classifier.
    """

    name = "tokenlearner"
    spec = MethodSpec((1, 1), sized=False, training="required")
    HIDDEN: ClassVar[int] = 64

    def setup(self) -> None:
        self.hidden = nn.Linear(self.dim, self.HIDDEN)
        self.maps = nn.Linear(self.HIDDEN, self.tokens, bias=False)

    def scores(self, x_BFLC: Tensor) -> Tensor:
        return linear(self.maps, gelu(linear(self.hidden, standardised(x_BFLC))))

    def macs(self, frames: int, tokens: int) -> int:
        return frames * tokens * (self.dim * self.HIDDEN + self.tokens * (self.HIDDEN + self.dim + 3))
