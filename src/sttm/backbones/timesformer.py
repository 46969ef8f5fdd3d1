"""TimeSformer (Bertasius et al., ICML 2021): divided, joint or space-only attention, class token first.

Its tokens lie place by place, the frames of a place together; its attention is written out and knows no interface,
so sizes weigh the probabilities after the softmax, which is the same as log sizes before it.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Backbone, ClipShape, Grid, Layer, check_clip


class TimeSformer(Backbone):
    family = "timesformer"
    example = "facebook/timesformer-base-finetuned-k400"
    classes = ("TimesformerForVideoClassification", "TimesformerModel")
    aligned = True
    class_token = True
    time_minor = True

    def blocks(self, model: Any) -> Any:
        return self.base(model).encoder.layer

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        check_clip(self.family, self.clip_shape(model), clip_shape, tubelet=1)
        config = model.config
        side = config.image_size // config.patch_size
        if config.attention_type == "space_only":
            # Each frame goes through the blocks by itself, as a batch of its own.
            return Grid(1, side, side, prefix=1, sequences=config.num_frames)
        return Grid(config.num_frames, side, side, prefix=1)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        stem = config.num_frames * grid.tokens * config.num_channels * config.patch_size**2 * config.hidden_size
        head = config.hidden_size * config.num_labels if hasattr(model, "classifier") else 0
        return stem + grid.sequences * head

    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        if model.config.attention_type != "divided_space_time":
            return super().block_macs(model, grid, frames, tokens)
        width, inner = model.config.hidden_size, model.config.intermediate_size
        in_time = 4 * frames * tokens * width**2 + 2 * tokens * frames**2 * width
        joined = frames * tokens * width**2
        in_space = 4 * frames * (tokens + 1) * width**2 + 2 * frames * (tokens + 1) ** 2 * width
        return in_time + joined + in_space + 2 * (1 + frames * tokens) * width * inner

    def layer(self, block: Any) -> Layer:
        space = block.attention.attention
        if block.attention_type != "divided_space_time":
            return Layer(block, (Attention(space, space.attn_drop),), keyword=None)
        time = block.temporal_attention.attention
        attention = (Attention(time, time.attn_drop, over="place"), Attention(space, space.attn_drop, over="frame"))
        return Layer(block, attention, keyword=None)

    def block_settings(self, model: Any, frames: int, tokens: int) -> dict[str, Any]:
        # A block works out its grid from its config: one of F frames, each a column of M slots.
        return {"num_frames": frames, "image_size": model.config.patch_size}
