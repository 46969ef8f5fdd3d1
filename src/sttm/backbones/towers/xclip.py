"""X-CLIP's frame tower (Ni et al., ECCV 2022): each frame a sequence with a message token, which frames exchange.

Tokens merge within their frame. Each block makes a message of the class token, exchanges the messages of all frames and
attends over the tokens and the message. Behind the tower the model averages patches over frames by their index, so the
tokens come back as the first grid. Of an XCLIPModel, give the tower: `sttm.apply(model.vision_model)`.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, ClipShape, Grid, Layer, check_clip
from sttm.backbones.towers.tower import Tower


class XCLIP(Tower):
    family = "xclip"
    example = "microsoft/xclip-base-patch16"
    classes = ("XCLIPVisionModel",)
    restores = True
    exports = False

    def blocks(self, model: Any) -> Any:
        return model.encoder.layers

    def clip_shape(self, model: Any) -> ClipShape:
        return int(model.config.num_frames), *super().clip_shape(model)[1:]

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        check_clip(self.family, self.clip_shape(model), clip_shape, tubelet=1)
        one = super().grid(model, clip_shape)
        return Grid(1, one.height, one.width, one.prefix, sequences=one.frames)

    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        width, length, messages = self.width(model), grid.prefix + tokens + 1, grid.sequences
        attention = 4 * length * width**2 + 2 * length**2 * width
        message = 5 * width**2 + 2 * messages * width
        return attention + message + self.mlp_macs(model, grid, frames, tokens)

    def layer(self, block: Any) -> Layer:
        attention = (Attention(block.self_attn, added=1),)
        return Layer(block, attention, norm=block.layer_norm2, mlp=block.mlp, aside=(block.message_attn,))
