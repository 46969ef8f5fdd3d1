"""V-JEPA 2 (Assran et al., 2025): joint attention with rotary positions in (t, y, x), an attentive pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sttm.backbones.base import Backbone, ClipShape, Grid, Ledger, Seat, seat_of, transformer_macs
from sttm.errors import SttmError
from sttm.patching.edits import Patch


class VJEPA2(Backbone):
    family = "vjepa2"
    example = "facebook/vjepa2-vitl-fpc16-256-ssv2"
    classes = ("VJEPA2ForVideoClassification",)

    def blocks(self, model: Any) -> Any:
        return _base(model).encoder.layer

    def clip_shape(self, model: Any) -> ClipShape:
        config = model.config
        return config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        config = model.config
        frames, *pixels = clip_shape
        # Rotary positions know no length, so any number of frames goes; but a row is as long as the config says.
        if tuple(pixels) != self.clip_shape(model)[1:] or frames < 1 or frames % config.tubelet_size:
            wanted = f"(a multiple of {config.tubelet_size}, {', '.join(map(str, self.clip_shape(model)[1:]))})"
            raise SttmError(f"this V-JEPA 2 model takes clips of {wanted} and got clip_shape={clip_shape}; change it")
        side = config.crop_size // config.patch_size
        return Grid(frames // config.tubelet_size, side, side, prefix=0)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        width = config.hidden_size
        # The pooler's perceptrons are four times the width, whatever the encoder's are (the family's own default).
        inner, slots = 4 * width, frames * tokens
        stem = grid.frames * grid.tokens * config.in_chans * config.tubelet_size * config.patch_size**2 * width
        layers = config.num_pooler_layers * transformer_macs(slots, width, inner)
        # One query looks at all slots; there is no output projection.
        cross = width**2 * (1 + 2 * slots) + 2 * slots * width + 2 * width * inner
        return stem + layers + cross + width * config.num_labels

    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        width = model.config.hidden_size
        return transformer_macs(frames * tokens, width, int(width * model.config.mlp_ratio))

    def fit_blocks(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger, grid: Grid) -> None:
        for number, block in enumerate(self.blocks(model)):
            if seat := seat_of(number, seats):
                patch.set_attribute(block.attention, "get_position_ids", RotaryPositions(ledger, seat.index, grid))

    def weigh_by_size(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger) -> None:
        keyed = []
        for number, block in enumerate(self.blocks(model)):
            if seat := seat_of(number, seats):
                keyed.append((block.attention, seat.index))
        pooler, last = model.pooler, seats[-1].index
        keyed += [(layer.self_attn, last) for layer in pooler.self_attention_layers]
        keyed.append((pooler.cross_attention_layer.cross_attn, last))
        from sttm.patching.attention import weigh_keys

        weigh_keys(patch, model, keyed, ledger)


class RotaryPositions:
    """Where merged tokens are, in the units that the rotary embedding counts in: token frames, rows, columns.

    Stands in for the attention's own rule, which reads a token's place from its index.
    """

    def __init__(self, ledger: Ledger, index: int, grid: Grid) -> None:
        self.ledger, self.index, self.grid = ledger, index, grid

    def __call__(self, x: Tensor, masks: Tensor | None = None) -> tuple[Tensor, ...]:
        """Fractional (t, y, x), each [B, 1, N] so that all heads share it."""
        # Queries and keys must keep the precision of the values.
        device = x.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        unit_BN3 = (self.ledger.read(self.index).position_BFM3.flatten(1, 2) + 1) / 2
        lengths = (self.grid.frames, self.grid.height, self.grid.width)
        return tuple((unit_BN3[:, None, :, axis] * (lengths[axis] - 1)).to(dtype) for axis in range(3))


def _base(model: Any) -> Any:
    return getattr(model, "vjepa2", model)
