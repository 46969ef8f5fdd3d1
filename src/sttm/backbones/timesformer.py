"""TimeSformer (Bertasius et al., ICML 2021): divided, joint or space-only attention, class token first.

Its tokens lie place by place, the frames of a place together; its attention is written out and knows no interface,
so sizes weigh the probabilities after the softmax, which is the same as log sizes before it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones.base import Backbone, ClipShape, Grid, Ledger, Seat, fixed_clip, seat_of, transformer_macs
from sttm.patching.edits import Patch


class TimeSformer(Backbone):
    family = "timesformer"
    example = "facebook/timesformer-base-finetuned-k400"
    classes = ("TimesformerForVideoClassification", "TimesformerModel")
    aligned = True
    time_minor = True

    def blocks(self, model: Any) -> Any:
        return _base(model).encoder.layer

    def clip_shape(self, model: Any) -> ClipShape:
        config = model.config
        return config.num_frames, config.num_channels, config.image_size, config.image_size

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        fixed_clip(self.family, self.clip_shape(model), clip_shape)
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
        width, inner = model.config.hidden_size, model.config.intermediate_size
        if model.config.attention_type != "divided_space_time":
            return transformer_macs(grid.prefix + frames * tokens, width, inner)
        in_time = 4 * frames * tokens * width**2 + 2 * tokens * frames**2 * width
        joined = frames * tokens * width**2
        in_space = 4 * frames * (tokens + 1) * width**2 + 2 * frames * (tokens + 1) ** 2 * width
        return in_time + joined + in_space + 2 * (1 + frames * tokens) * width * inner

    def fit_blocks(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger, grid: Grid) -> None:
        for number, block in enumerate(self.blocks(model)):
            if seat := seat_of(number, seats):
                # A block works out its grid from its config: show it one of F frames, each a column of M slots.
                config = copy.copy(block.config)
                config.num_frames, config.image_size = seat.frames, config.patch_size
                patch.set_attribute(block, "config", config)

    def weigh_by_size(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger) -> None:
        divided = model.config.attention_type == "divided_space_time"
        for number, block in enumerate(self.blocks(model)):
            if seat := seat_of(number, seats):
                sizes = "space" if divided else "joint"
                patch.before(block.attention.attention.attn_drop, SizedProbabilities(ledger, seat.index, sizes))
                if divided:
                    drop = block.temporal_attention.attention.attn_drop
                    patch.before(drop, SizedProbabilities(ledger, seat.index, "time"))


class SizedProbabilities:
    """Weighs attention probabilities by the sizes of the keys: [B' A Q K] -> [B' A Q K]."""

    def __init__(self, ledger: Ledger, index: int, over: str) -> None:
        self.ledger, self.index, self.over = ledger, index, over

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        page = self.ledger.read(self.index)
        size_BFM = page.size_BFM
        if self.over == "time":
            # [B F M] -> [B*M F]: a sequence a place, without class token
            size_BK = size_BFM.transpose(1, 2).flatten(0, 1)
        elif self.over == "space":
            # [B F M] -> [B*F 1+M]: a sequence a frame, the class token first
            size_BK = nn.functional.pad(size_BFM.flatten(0, 1), (1, 0), value=1.0)
        else:
            size_BK = page.log_size(time_minor=True).exp()
        weighed = args[0] * size_BK[:, None, None].to(args[0].dtype)
        return (weighed / weighed.sum(-1, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny),)


def _base(model: Any) -> Any:
    return getattr(model, "timesformer", model)
