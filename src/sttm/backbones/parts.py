"""What a family says of a model's modules: its token grid, its layers and their attention, how its head reads tokens.

Legend: B clips, P prefix tokens, T token frames, H x W token grid, S = H*W tokens in a frame, F frames and M slots in a
frame after a merger, N = P + T*S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

# One clip of pixels: frames, channels, height, width.
ClipShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """The token grid of one clip: T frames of H x W tokens, after P prefix tokens.

    `sequences` is how many times the blocks run for one clip: 1, or T where each frame goes through by itself.
    """

    frames: int
    height: int
    width: int
    prefix: int
    sequences: int = 1

    @property
    def tokens(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, eq=False)
class Slots:
    """What the hidden states stand for after a merger: the size and position of each slot, after P prefix tokens.

    Attributes:
        size_BFM: how many tokens of the first grid each slot stands for.
        position_BFM3: where it is, (t, y, x), each axis in [-1, 1].
        log_size_BN: log sizes in the order of the hidden states, prefix tokens counting one each; None where slots
            count alike.
        prefix: P.
    """

    size_BFM: Tensor
    position_BFM3: Tensor
    log_size_BN: Tensor | None
    prefix: int


@dataclass(frozen=True)
class Attention:
    """One attention module whose keys are the tokens, and how the sizes of its keys reach its scores.

    Attributes:
        module: looks its attention function up in transformers' interface by `module.config`, unless what follows says
            otherwise.
        dropout: or, where attention is written out, the dropout that the probabilities go through.
        over: which tokens a query sees: all of the clip, those of its frame, or those of its place in every frame.
        rotary: the argument that rotary positions come by, where the module does not work them out itself.
        bias: the argument that takes a bias on the scores, where the module attends by itself.
        added: tokens of its own that the layer puts behind the others for this module; each counts one.
    """

    module: nn.Module
    dropout: nn.Module | None = None
    over: Literal["clip", "frame", "place"] = "clip"
    rotary: str | None = None
    bias: str | None = None
    added: int = 0


@dataclass(frozen=True)
class Layer:
    """A layer that attends over the tokens.

    Attributes:
        module: the layer.
        attention: its attention modules.
        keyword: the keyword argument of the layer that it hands on to its attention, by which the slots travel (so that
            gradient checkpointing captures them); None where it hands on nothing, and its forward is wrapped.
        position: the place of that argument where it is passed by position.
        norm: the norm that the sum of attention and residual goes through on its way to the MLP; None where nothing can
            merge inside the layer.
        mlp: the last module of the MLP that works on each token by itself, before the residual is added.
        aside: attention modules over other tokens that the layer hands the same argument.
    """

    module: nn.Module
    attention: tuple[Attention, ...]
    keyword: str | None = "sttm_slots"
    position: int | None = None
    norm: nn.Module | None = None
    mlp: nn.Module | None = None
    aside: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Pooling:
    """A head that reads the tokens itself.

    Attributes:
        module: what gets the tokens' mean; the first of them; the class token and the mean in one row; or, an
            nn.MultiheadAttention, all of them as keys.
        reads: which of these.
    """

    module: nn.Module
    reads: Literal["mean", "first", "class and mean", "keys"]
