"""VideoMAE (Tong et al., NeurIPS 2022): joint attention, no class token, a head on the mean of all tokens."""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Backbone, ClipShape, Grid, Layer, Pooling, check_clip, pair


class VideoMAE(Backbone):
    family = "videomae"
    example = "MCG-NJU/videomae-base-finetuned-kinetics"
    classes = ("VideoMAEForVideoClassification", "VideoMAEModel")

    def blocks(self, model: Any) -> Any:
        return self.base(model).encoder.layer

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        config = model.config
        check_clip(self.family, self.clip_shape(model), clip_shape, config.tubelet_size)
        (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
        return Grid(config.num_frames // config.tubelet_size, height // patch_height, width // patch_width, prefix=0)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        patch_height, patch_width = pair(config.patch_size)
        voxels = config.num_channels * config.tubelet_size * patch_height * patch_width
        head = config.num_labels if hasattr(model, "classifier") else 0
        return grid.frames * grid.tokens * voxels * config.hidden_size + config.hidden_size * head

    def layer(self, block: Any) -> Layer:
        # The module behind the dropout adds the residual itself; an adapter may wrap the linear layer before it.
        mlp = block.output.dropout
        return Layer(block, (Attention(block.attention.attention),), norm=block.layernorm_after, mlp=mlp)

    def pooling(self, model: Any) -> Pooling | None:
        if not hasattr(model, "classifier"):
            return None
        if model.fc_norm is None:  # use_mean_pooling=False
            return Pooling(model.classifier, "first")
        return Pooling(model.fc_norm, "mean")
