"""ViT (Dosovitskiy et al., ICLR 2021) as a tower for frames: pictures in, a class token first.

Each frame of a video is a picture by itself, and a clip of one frame: tokens merge within it.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Backbone, ClipShape, Grid, Layer, check_clip, pair


class ViT(Backbone):
    family = "vit"
    example = "google/vit-base-patch16-224"
    classes = ("ViTForImageClassification", "ViTModel")
    pictures = True

    def blocks(self, model: Any) -> Any:
        return self.base(model).layers

    def clip_shape(self, model: Any) -> ClipShape:
        return 1, model.config.num_channels, *pair(model.config.image_size)

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        # Other sizes, for which the model can interpolate its positions, are refused too.
        check_clip(self.family, self.clip_shape(model), clip_shape, tubelet=1)
        (_, _, height, width), (patch_height, patch_width) = clip_shape, pair(model.config.patch_size)
        return Grid(1, height // patch_height, width // patch_width, prefix=1)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        patch_height, patch_width = pair(config.patch_size)
        stem = grid.tokens * config.num_channels * patch_height * patch_width * config.hidden_size
        pooler = config.hidden_size * config.pooler_output_size if self.base(model).pooler is not None else 0
        head = config.hidden_size * config.num_labels if hasattr(model, "classifier") else 0
        return stem + pooler + head

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.attention),), norm=block.layernorm_after, mlp=block.mlp)
