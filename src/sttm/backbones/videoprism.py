"""VideoPrism (Zhao et al., ICML 2024): layers over the patches of each frame, then layers over time at each place.

Tokens merge in the layers over space, each frame by itself. The layers over time join the frames by index, so that slot
m would have to be the same object in every frame; what merges in space is not, and the tokens come back as the first
grid in between. Merging in the layers over time is left out: there are few, and each of their sequences is one place.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import (
    Attention,
    Backbone,
    ClipShape,
    Grid,
    Layer,
    check_clip,
    linear_macs,
    pair,
    transformer_macs,
)


class VideoPrism(Backbone):
    family = "videoprism"
    example = "google/videoprism-base-f16r288"
    classes = ("VideoPrismForVideoClassification", "VideoPrismVideoModel", "VideoPrismVisionModel")
    restores = True
    exports = False

    def base(self, model: Any) -> Any:
        return getattr(model, "vision_model", model)

    def blocks(self, model: Any) -> Any:
        return self.base(model).spatial_layers

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        check_clip(self.family, self.clip_shape(model), clip_shape, tubelet=1)
        (height, width), (_, rows, columns) = pair(self.config(model).image_size), self.config(model).tubelet_size
        return Grid(1, height // rows, width // columns, prefix=0, sequences=clip_shape[0])

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = self.config(model), self.grid(model, clip_shape)
        width, inner, times = config.hidden_size, config.intermediate_size, grid.sequences
        _, rows, columns = config.tubelet_size
        every = times * grid.tokens
        total = every * config.num_channels * rows * columns * width
        total += config.num_temporal_layers * grid.tokens * transformer_macs(times, width, inner)
        if hasattr(model, "auxiliary_layers"):
            total += config.num_auxiliary_layers * transformer_macs(every, width, inner)
        if hasattr(model, "head"):
            # One query attends over all tokens, in the width of the MLP.
            total += 2 * width * inner + 2 * every * width * inner + 2 * every * inner
        return total + linear_macs(getattr(model, "classifier", None))

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.attention),), norm=block.layernorm_after, mlp=block.mlp)
