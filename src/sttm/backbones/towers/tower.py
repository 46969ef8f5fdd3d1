"""What towers for frames share: pictures in, each a sequence by itself, prefix tokens first.

A clip of one frame merges within it. A clip of several frames comes as so many pictures in a row, and its first merger
joins frames to windows: from there on a window is one sequence, whose prefix tokens are the average of its frames'.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Backbone, ClipShape, Grid, Layer, linear_macs, pair
from sttm.errors import SttmError


class Tower(Backbone):
    """A family of towers; what it has to say are its classes, its blocks, and what its head costs."""

    pictures = True
    class_token = True
    #: the model takes pictures of any size that its patches fill
    any_size: bool = False

    def base(self, model: Any) -> Any:
        # transformers' `base_model` finds no tower behind a head of another model type, and an encoder in some.
        return getattr(model, "vision_model", model)

    def clip_shape(self, model: Any) -> ClipShape:
        config = self.config(model)
        return 1, config.num_channels, *pair(config.image_size)

    def prefix(self, config: Any) -> int:
        """Return how many tokens are in front of the patches: the class token."""
        return 1

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        config, (frames, channels, height, width) = self.config(model), clip_shape
        _, own_channels, *size = self.clip_shape(model)
        rows, columns = pair(config.patch_size)
        fits = min(height, width) > 0 and height % rows == width % columns == 0
        if frames < 1 or channels != own_channels or not (fits if self.any_size else [height, width] == size):
            sides = f"multiples of {rows}, of {columns}" if self.any_size else f"{size[0]}, {size[1]}"
            raise SttmError(
                f"this {self.family} model takes clips of (any frames, {own_channels}, {sides}) (frames, channels, "
                f"height, width), each frame a picture, and got {clip_shape}; give clips of that shape"
            )
        return Grid(frames, height // rows, width // columns, self.prefix(config))

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = self.config(model), self.grid(model, clip_shape)
        rows, columns = pair(config.patch_size)
        # Rows and columns of pixels that fill no patch are left out.
        stem = clip_shape[0] * grid.tokens * config.num_channels * rows * columns * config.hidden_size
        return stem + frames * self.head_macs(model, tokens)

    def head_macs(self, model: Any, tokens: int) -> int:
        """Return the multiply-adds behind the blocks for one frame, or one window of frames, of so many tokens."""
        return linear_macs(getattr(model, "classifier", None))

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.attention),), norm=block.norm2, mlp=block.layer_scale2)
