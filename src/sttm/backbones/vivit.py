"""ViViT, the factorised-patch joint model (Arnab et al., ICCV 2021): a class token first, joint attention."""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Backbone, ClipShape, Grid, Layer, check_clip


class ViViT(Backbone):
    family = "vivit"
    example = "google/vivit-b-16x2-kinetics400"
    classes = ("VivitForVideoClassification", "VivitModel")
    class_token = True

    def blocks(self, model: Any) -> Any:
        return self.base(model).layers

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        check_clip(self.family, self.clip_shape(model), clip_shape, model.config.tubelet_size[0])
        frames, _, height, width = clip_shape
        tube_frames, tube_height, tube_width = model.config.tubelet_size
        return Grid(frames // tube_frames, height // tube_height, width // tube_width, prefix=1)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        tube_frames, tube_height, tube_width = config.tubelet_size
        voxels = config.num_channels * tube_frames * tube_height * tube_width
        pooler = config.hidden_size * config.pooler_output_size if self.base(model).pooler is not None else 0
        head = config.hidden_size * config.num_labels if hasattr(model, "classifier") else 0
        return grid.frames * grid.tokens * voxels * config.hidden_size + pooler + head

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.attention),), norm=block.layernorm_after, mlp=block.mlp)
