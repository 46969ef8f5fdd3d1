"""What sttm has to know of a family of video transformers.

A family describes its modules; it edits none. `sttm.patching` does all edits from that description.

Legend: B clips, P prefix tokens, T token frames, H x W token grid, S = H*W tokens in a frame, F frames and M slots in a
frame after a merger, N = P + T*S tokens, C width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones.parts import Attention, ClipShape, Grid, Layer, Pooling, Slots
from sttm.errors import SttmError
from sttm.merging.tokens import Tokens

__all__ = ["Attention", "Backbone", "ClipShape", "Grid", "Layer", "Pooling", "Slots", "check_clip", "linear_macs"]
__all__ += ["pair", "patches", "transformer_macs"]


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
    #: pixels are pictures, [clips * frames, channels, height, width], and each goes through the blocks by itself
    pictures: bool = False
    #: what is behind the blocks joins tokens by their index: they come back as the first grid (see `sttm.apply`)
    restores: bool = False
    #: tokens turn by their positions in attention
    rotates: bool = False
    #: a class token, and maybe registers, in front of the others
    class_token: bool = False
    #: merged models are known to export to ONNX
    exports: bool = True

    def supports(self) -> dict[str, bool]:
        """Return what the family is and what it supports, for `sttm models`."""
        return {
            "pictures": self.pictures,
            "class_token": self.class_token,
            "rotary": self.rotates,
            "divided": self.aligned,
            "features": any("Classification" not in name for name in self.classes),
            "restores": self.restores,
            "export": self.exports,
        }

    @abstractmethod
    def blocks(self, model: Any) -> Any:
        """Return the transformer blocks, in order: an nn.ModuleList."""

    def clip_shape(self, model: Any) -> ClipShape:
        """Return the pixels of one clip that the model is configured for."""
        config = self.config(model)
        return config.num_frames, config.num_channels, *pair(config.image_size)

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
        (count, length), width = self.lengths(grid, frames, tokens), self.width(model)
        attention = 4 * length * width**2 + 2 * length**2 * width
        return count * attention + self.mlp_macs(model, grid, frames, tokens)

    def mlp_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        """Return the share of the MLP in `block_macs`, for families in whose blocks tokens can merge."""
        count, length = self.lengths(grid, frames, tokens)
        return count * length * self.mlp_weights(model)

    def mlp_weights(self, model: Any) -> int:
        """Return the weights of a block's MLP: its multiply-adds for one token; by default of two matrices."""
        return 2 * self.width(model) * int(self.config(model).intermediate_size)

    def lengths(self, grid: Grid, frames: int, tokens: int) -> tuple[int, int]:
        """Return how many sequences frames x tokens are for the blocks, and the tokens of each with their prefix."""
        return (frames, grid.prefix + tokens) if self.pictures else (1, grid.prefix + frames * tokens)

    @abstractmethod
    def layer(self, block: Any) -> Layer:
        """Return the attention modules of a block, how the slots reach them, and where its MLP is."""

    def pixels_shape(self, clips: int, clip_shape: ClipShape) -> tuple[int, ...]:
        """Return the shape of the pixels of so many clips, as a forward takes them."""
        frames, *picture = clip_shape
        return (clips * frames, *picture) if self.pictures else (clips, *clip_shape)

    def clip_of(self, pixels: Tensor) -> ClipShape:
        """Return the shape of one clip of such pixels; a picture is a clip of one frame.

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

    def config(self, model: Any) -> Any:
        """Return the config that the blocks are made by."""
        return self.base(model).config

    def check_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], restored: bool) -> None:
        """Raise SttmError for a call of the merged model, or of its base, that merged tokens cannot answer.

        `restored`: the tokens come back as the first grid.
        """
        if kwargs.get("attention_mask") is not None:
            raise SttmError(
                "a merged model takes no attention mask, as its tokens are not those of the mask; leave it out"
            )

    def head_layers(self, model: Any) -> list[Layer]:
        """Return the layers behind the blocks that attend over the tokens too."""
        return []

    def pooling(self, model: Any) -> Pooling | None:
        """Return how the head reads the tokens itself; None where it reads a prefix token or attends."""
        return None

    def width(self, model: Any) -> int:
        return int(self.config(model).hidden_size)

    def head_width(self, model: Any) -> int:
        """Return the width of the keys of one attention head."""
        config = self.config(model)
        return getattr(config, "head_dim", None) or self.width(model) // config.num_attention_heads

    def classifies(self, model: Any) -> bool:
        """Return whether the model has a head that gives logits."""
        return hasattr(model, "classifier")

    def check(self, model: Any) -> None:
        """Raise SttmError for a setting of the family that cannot be merged."""

    def block_settings(self, model: Any, frames: int, tokens: int) -> dict[str, Any]:
        """Return the settings that a block behind a merger has to read from its config instead of the model's."""
        return {}

    def rotary(self, given: Any, slots: Slots, grid: Grid, attention: Any = None) -> tuple[Tensor, ...]:
        """Return the rotary positions of merged tokens, of a family that `rotates`.

        Args:
            given: the hidden states, for what stands in for `attention.get_position_ids`; or the positions of the
                first grid that the attention module gets by its argument `Attention.rotary`.
        """
        raise NotImplementedError

    def split(self, hidden_BNC: Tensor, frames: int, tokens: int, prefix: int) -> tuple[Tensor, Tensor | None]:
        """Return the grid and the prefix of hidden states: [B, P + T*S, C] -> [B T S C], [B P C].

        Where each frame goes through by itself: [B*T, P + S, C] -> [B T S C], [B T*P C].
        """
        if self.pictures:
            x_BTNC = hidden_BNC.unflatten(0, (-1, frames))
            return x_BTNC[:, :, prefix:], x_BTNC[:, :, :prefix].flatten(1, 2) if prefix else None
        x_BNC = hidden_BNC[:, prefix:]
        if self.time_minor:
            x_BTSC = x_BNC.unflatten(1, (tokens, frames)).transpose(1, 2)
        else:
            x_BTSC = x_BNC.unflatten(1, (frames, tokens))
        return x_BTSC, hidden_BNC[:, :prefix] if prefix else None

    def join(self, x_BFMC: Tensor, prefix_BPC: Tensor | None, prefix: int) -> Tensor:
        """Return the inverse of `split`: [B F M C], [B P C] -> [B, P + F*M, C].

        Where each frame goes through by itself, [B F M C], [B T*P C] -> [B*F, P + M, C]: frames that became one share
        the average of their prefix tokens, and one that became several gives its own to each.
        """
        if prefix_BPC is None or not self.pictures:
            x_BNC = self.in_order(x_BFMC)
            return x_BNC if prefix_BPC is None else torch.cat((prefix_BPC, x_BNC), dim=1)
        prefix_BTPC, frames = prefix_BPC.unflatten(1, (-1, prefix)), x_BFMC.shape[1]
        if prefix_BTPC.shape[1] > frames:
            prefix_BTPC = prefix_BTPC.unflatten(1, (frames, -1)).mean(2)
        elif prefix_BTPC.shape[1] < frames:
            prefix_BTPC = prefix_BTPC.repeat_interleave(frames // prefix_BTPC.shape[1], dim=1)
        return torch.cat((prefix_BTPC, x_BFMC), dim=2).flatten(0, 1)

    def in_order(self, x_BFM: Tensor) -> Tensor:
        """Return values of a grid as the hidden states hold its tokens: [B F M ...] -> [B F*M ...] or [B*F M ...]."""
        if self.pictures:
            return x_BFM.flatten(0, 1)
        return (x_BFM.transpose(1, 2) if self.time_minor else x_BFM).flatten(1, 2)

    def slots(self, tokens: Tokens, grid: Grid, sized: bool) -> Slots:
        """Return what the tokens that a merger left stand for."""
        log_size_BN = None
        if sized:
            # A prefix token counts one, or, where each frame has its own, the frames that became one.
            frames = grid.frames / tokens.size_BTS.shape[1] if self.pictures else 1
            log_size_BN = nn.functional.pad(self.in_order(tokens.size_BTS).log(), (grid.prefix, 0), value=log(frames))
        return Slots(tokens.size_BTS, tokens.position_BTS3, log_size_BN, grid.prefix)


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


def linear_macs(layer: Any) -> int:
    """Return the multiply-adds of a linear layer for one token; 0 for a head that is none, or is not there."""
    return int(getattr(layer, "in_features", 0) * getattr(layer, "out_features", 0))


def transformer_macs(tokens: int, width: int, inner: int, keys: int | None = None) -> int:
    """Return the multiply-adds of a pre-norm block: q, k, v, output projection, attention, and the two-layer MLP."""
    keys = tokens if keys is None else keys
    return 4 * tokens * width**2 + 2 * tokens * keys * width + 2 * tokens * width * inner
