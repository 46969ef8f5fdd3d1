"""DINOv3's ViT (Siméoni et al., 2025): class token and registers first, rotary positions by the patches' coordinates.

Legend: B sequences, M slots of one, S patches, D channels of a head; 2 = (y, x).
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor

from sttm.backbones.base import Attention, Grid, Layer, Slots
from sttm.backbones.towers.tower import Tower


class DINOv3(Tower):
    family = "dinov3"
    example = "facebook/dinov3-vitb16-pretrain-lvd1689m"
    classes = ("DINOv3ViTModel",)
    any_size = True
    rotates = True

    def prefix(self, config: Any) -> int:
        return 1 + int(config.num_register_tokens)

    def blocks(self, model: Any) -> Any:
        return model.model.layer

    def mlp_weights(self, model: Any) -> int:
        config = self.config(model)
        return (3 if config.use_gated_mlp else 2) * config.hidden_size * config.intermediate_size

    def layer(self, block: Any) -> Layer:
        attention = Attention(block.attention, rotary="position_embeddings")
        return Layer(block, (attention,), norm=block.norm2, mlp=block.layer_scale2)

    def rotary(self, given: Any, slots: Slots, grid: Grid, attention: Any = None) -> tuple[Tensor, ...]:
        """Return cosine and sine for the centroids of merged patches, each [B 1 M D], from those of all patches [S D].

        In training the model draws a shift and a scale of all coordinates with every forward: merged patches get the
        same ones, read back from the slowest turn of the first and the last patch.
        """
        cos_SD, _ = given
        each_E = torch.arange(0, 1, 4 / attention.head_dim, dtype=torch.float32, device=cos_SD.device)
        turns_E = 2 * pi / attention.config.rope_theta**each_E
        if attention.training:
            first_2, last_2 = (self._coordinates(given, row, turns_E) for row in (0, -1))
        else:
            last_2 = torch.stack([torch.full_like(turns_E[0], 1 - 1 / side) for side in (grid.height, grid.width)])
            first_2 = -last_2
        unit_BM2 = (self.in_order(slots.position_BFM3)[..., 1:] + 1) / 2
        place_BM2 = first_2 + unit_BM2 * (last_2 - first_2)
        # [B M 2 E] -> [B 1 M D]: all heads share it
        angle_B1MD = (place_BM2[..., None] * turns_E).flatten(2).repeat(1, 1, 2)[:, None]
        return angle_B1MD.cos().to(cos_SD.dtype), angle_B1MD.sin().to(cos_SD.dtype)

    @staticmethod
    def _coordinates(given: Any, row: int, turns_E: Tensor) -> Tensor:
        """Return (y, x) of one patch from the cosine and sine of its slowest turns, which are less than half a turn."""
        # The channels of a head: those of y, those of x, and both again.
        at = [len(turns_E) - 1, 2 * len(turns_E) - 1]
        cos_2, sin_2 = (part[row, at].float() for part in given)
        return torch.atan2(sin_2, cos_2) / turns_E[-1]
