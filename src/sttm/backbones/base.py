"""What sttm has to know of a family of video transformers.

A family describes its modules; it edits none. `sttm.patching` does all edits from that description.

Legend: B clips, P prefix tokens, T token frames, H x W token grid, S = H*W tokens in a frame, F frames and M slots in a
frame after a merger, N = P + T*S tokens, C width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sttm.errors import SttmError
from sttm.merging.tokens import Tokens

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
        module: looks its attention function up in transformers' interface by `module.config`.
        dropout: or, where attention is written out, the dropout that the probabilities go through.
        over: which tokens a query sees: all of the clip, those of its frame, or those of its place in every frame.
    """

    module: nn.Module
    dropout: nn.Module | None = None
    over: Literal["clip", "frame", "place"] = "clip"


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
    """

    module: nn.Module
    attention: tuple[Attention, ...]
    keyword: str | None = "sttm_slots"
    position: int | None = None
    norm: nn.Module | None = None
    mlp: nn.Module | None = None


@dataclass(frozen=True)
class Pooling:
    """A head that reads the tokens itself: the module that gets their mean, or the first of them."""

    module: nn.Module
    reads: Literal["mean", "first"]


class Backbone(ABC):
    """One family: where its blocks are, how its tokens lie, how it pools and attends, what it costs.

    To add a family, subclass this and pass an instance to `sttm.backbones.register`.
    """

    family: str
    example: str
    #: classes of the family that can be merged, by name
    classes: tuple[str, ...]
    #: slot m must be the same place in every frame (attention over time at each place)
    aligned: bool = False
    #: tokens lie place by place, all frames of a place together, instead of frame by frame
    time_minor: bool = False
    #: pixels are pictures, [clips, channels, height, width], each a clip of one frame
    pictures: bool = False

    @abstractmethod
    def blocks(self, model: Any) -> Any:
        """Return the transformer blocks, in order: an nn.ModuleList."""

    def clip_shape(self, model: Any) -> ClipShape:
        """Return the pixels of one clip that the model is configured for."""
        return model.config.num_frames, model.config.num_channels, *pair(model.config.image_size)

    @abstractmethod
    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        """Return the token grid of such a clip.

        Raises:
            SttmError: for a clip that the model does not take.
        """

    @abstractmethod
    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        """Return the multiply-adds of one clip outside the blocks, the head seeing frames x tokens at the end."""

    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        """Return the multiply-adds of one block, of one sequence, at frames x tokens; by default of joint attention."""
        config = model.config
        return transformer_macs(grid.prefix + frames * tokens, config.hidden_size, config.intermediate_size)

    def mlp_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        """Return the share of the MLP in `block_macs`, for families in whose blocks tokens can merge."""
        return 2 * (grid.prefix + frames * tokens) * model.config.hidden_size * model.config.intermediate_size

    @abstractmethod
    def layer(self, block: Any) -> Layer:
        """Return the attention modules of a block, how the slots reach them, and where its MLP is."""

    def pixels_shape(self, clips: int, clip_shape: ClipShape) -> tuple[int, ...]:
        """Return the shape of the pixels of so many clips, as a forward takes them."""
        return (clips, *clip_shape[1:]) if self.pictures else (clips, *clip_shape)

    def clip_of(self, pixels: Tensor) -> ClipShape:
        """Return the shape of one clip of such pixels.

        Raises:
            SttmError: for pixels of another number of dimensions.
        """
        what, axes = ("pictures", 4) if self.pictures else ("clips", 5)
        if pixels.ndim != axes:
            shape = f"{what}, {'' if self.pictures else 'frames, '}channels, height, width"
            raise SttmError(
                f"this {self.family} model takes pixels of ({shape}) and got {pixels.ndim} dimensions; "
                f"give it a batch of {what}"
            )
        frames, channels, height, width = (1, *pixels.shape[1:]) if self.pictures else pixels.shape[1:]
        return frames, channels, height, width

    def base(self, model: Any) -> Any:
        """Return the model without its head; a call of it is a forward by itself."""
        return getattr(model, "base_model", model)

    def head_layers(self, model: Any) -> list[Layer]:
        """Return the layers behind the blocks that attend over the tokens too."""
        return []

    def pooling(self, model: Any) -> Pooling | None:
        """Return how the head reads the tokens itself; None where it reads a prefix token or attends."""
        return None

    def width(self, model: Any) -> int:
        return int(model.config.hidden_size)

    def head_width(self, model: Any) -> int:
        """Return the width of the keys of one attention head."""
        return getattr(model.config, "head_dim", None) or self.width(model) // model.config.num_attention_heads

    def check(self, model: Any) -> None:
        """Raise SttmError for a setting of the family that cannot be merged."""

    def block_settings(self, model: Any, frames: int, tokens: int) -> dict[str, Any]:
        """Return the settings that a block behind a merger has to read from its config instead of the model's."""
        return {}

    def rotary(self, hidden_BNC: Tensor, slots: Slots, grid: Grid) -> tuple[Tensor, ...] | None:
        """Return the positions that stand in for `attention.get_position_ids`; None in a family without rotary ones."""
        return None

    def split(self, hidden_BNC: Tensor, frames: int, tokens: int, prefix: int) -> tuple[Tensor, Tensor | None]:
        """Return the grid and the prefix of hidden states: [B, P + T*S, C] -> [B T S C], [B P C]."""
        x_BNC = hidden_BNC[:, prefix:]
        if self.time_minor:
            x_BTSC = x_BNC.unflatten(1, (tokens, frames)).transpose(1, 2)
        else:
            x_BTSC = x_BNC.unflatten(1, (frames, tokens))
        return x_BTSC, hidden_BNC[:, :prefix] if prefix else None

    def join(self, x_BFMC: Tensor, prefix_BPC: Tensor | None = None) -> Tensor:
        """Return the inverse of `split`: [B F M C], [B P C] -> [B, P + F*M, C]."""
        x_BNC = (x_BFMC.transpose(1, 2) if self.time_minor else x_BFMC).flatten(1, 2)
        return x_BNC if prefix_BPC is None else torch.cat((prefix_BPC, x_BNC), dim=1)

    def slots(self, tokens: Tokens, prefix: int, sized: bool) -> Slots:
        """Return what the tokens that a merger left stand for."""
        log_size_BN = None
        if sized:
            size_BFM = tokens.size_BTS.transpose(1, 2) if self.time_minor else tokens.size_BTS
            # A prefix token counts one: its log size is 0.
            log_size_BN = nn.functional.pad(size_BFM.flatten(1).log(), (prefix, 0))
        return Slots(tokens.size_BTS, tokens.position_BTS3, log_size_BN, prefix)


def pair(size: Any) -> tuple[int, int]:
    """Return (height, width) of a setting that may be one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def patches(pixels_BUCYX: Tensor, grid: Grid) -> Tensor:
    """Return the pixels of each token in its first frame, then those in its last: [B T S D]."""
    # B clips, U frames, C channels, Y rows and X columns of pixels; D pixels of the two ends of a token.
    _, U, _, Y, X = pixels_BUCYX.shape
    used, height, width = max(1, U // grid.frames), Y // grid.height, X // grid.width
    cut = pixels_BUCYX[:, : grid.frames * used, :, : grid.height * height, : grid.width * width]
    x_BTUCYX = cut.unflatten(1, (grid.frames, used))
    ends_BT2CYX = torch.stack((x_BTUCYX[:, :, 0], x_BTUCYX[:, :, -1]), dim=2)
    # [B T 2 C H*h W*w] -> [B T H W 2 C h w] -> [B T S D]
    split = ends_BT2CYX.unflatten(5, (grid.width, width)).unflatten(4, (grid.height, height))
    return split.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(2, 3)


def check_clip(family: str, wanted: ClipShape, given: ClipShape, tubelet: int) -> None:
    """Raise SttmError unless a clip has the picture size and the token frames of a family with learnt positions."""
    if wanted[1:] != given[1:] or wanted[0] // tubelet != given[0] // tubelet:
        raise SttmError(
            f"this {family} model takes clips of {wanted} (frames, channels, height, width) and got {given}; "
            "give clips of that shape, or load the model with a config for yours"
        )


def transformer_macs(tokens: int, width: int, inner: int, keys: int | None = None) -> int:
    """Return the multiply-adds of a pre-norm block: q, k, v, output projection, attention, and the two-layer MLP."""
    keys = tokens if keys is None else keys
    return 4 * tokens * width**2 + 2 * tokens * keys * width + 2 * tokens * width * inner
