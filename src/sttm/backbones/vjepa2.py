"""V-JEPA 2 (Assran et al., 2025): joint attention with rotary positions in (t, y, x), an attentive pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sttm.backbones.base import Attention, Backbone, ClipShape, Grid, Layer, Slots, transformer_macs
from sttm.errors import SttmError


class VJEPA2(Backbone):
    family = "vjepa2"
    example = "facebook/vjepa2-vitl-fpc16-256-ssv2"
    classes = ("VJEPA2ForVideoClassification", "VJEPA2Model")
    rotates = True

    def blocks(self, model: Any) -> Any:
        return self.base(model).encoder.layer

    def clip_shape(self, model: Any) -> ClipShape:
        config = model.config
        return config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        config = model.config
        frames, *pixels = clip_shape
        # Rotary positions know no length, so any number of frames goes; but a row is as long as the config says.
        if tuple(pixels) != self.clip_shape(model)[1:] or frames < 1:
            wanted = f"(any frames, {', '.join(map(str, self.clip_shape(model)[1:]))})"
            raise SttmError(
                f"this V-JEPA 2 model takes clips of {wanted} (frames, channels, height, width) and got {clip_shape}; "
                "give clips of that shape"
            )
        side = config.crop_size // config.patch_size
        # Frames that fill no tubelet are left out; fewer than one tubelet are repeated to one.
        return Grid(max(1, frames // config.tubelet_size), side, side, prefix=0)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        width = config.hidden_size
        stem = grid.frames * grid.tokens * config.in_chans * config.tubelet_size * config.patch_size**2 * width
        if not hasattr(model, "pooler"):
            return stem  # the features are the encoder's; the predictor is left out
        # The pooler's perceptrons are four times the width, whatever the encoder's are (the family's own default).
        inner, slots = 4 * width, frames * tokens
        layers = config.num_pooler_layers * transformer_macs(slots, width, inner)
        # One query looks at all slots; there is no output projection.
        cross = width**2 * (1 + 2 * slots) + 2 * slots * width + 2 * width * inner
        return stem + layers + cross + width * config.num_labels

    def mlp_weights(self, model: Any) -> int:
        width = self.width(model)
        return 2 * width * int(width * self.config(model).mlp_ratio)

    def layer(self, block: Any) -> Layer:
        # Of all that a block is called with, only this argument reaches its attention; no model passes it a value.
        attention = (Attention(block.attention),)
        return Layer(block, attention, keyword="position_mask", position=1, norm=block.norm2, mlp=block.mlp)

    def check_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], restored: bool) -> None:
        super().check_call(module, args, kwargs, restored)
        masks = kwargs.get("context_mask") is not None or kwargs.get("target_mask") is not None or len(args) > 1
        if hasattr(module, "predictor") and not restored and (masks or not kwargs.get("skip_predictor")):
            raise SttmError(
                "V-JEPA 2's masks and its predictor count the tokens of the plain grid, and merged ones are fewer; "
                "call the model with skip_predictor=True and no mask, or merge it by sttm.apply(model, restore=True)"
            )

    def head_layers(self, model: Any) -> list[Layer]:
        if not hasattr(model, "pooler"):
            return []
        attending = [(layer, layer.self_attn) for layer in model.pooler.self_attention_layers]
        cross = model.pooler.cross_attention_layer
        layers = [*attending, (cross, cross.cross_attn)]
        return [Layer(layer, (Attention(attention),), keyword="attention_mask") for layer, attention in layers]

    def rotary(self, given: Tensor, slots: Slots, grid: Grid, attention: Any = None) -> tuple[Tensor, ...]:
        """Return where merged tokens are in token frames, rows, columns: fractional (t, y, x), each [B 1 N].

        Plain attention reads a token's place from its index.
        """
        # Queries and keys must keep the precision of the values.
        device = given.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else given.dtype
        unit_BN3 = (slots.position_BFM3.flatten(1, 2) + 1) / 2
        lengths = (grid.frames, grid.height, grid.width)
        # [B N] -> [B 1 N]: all heads share it
        return tuple((unit_BN3[:, None, :, axis] * (length - 1)).to(dtype) for axis, length in enumerate(lengths))
