"""ViT (Dosovitskiy et al., ICLR 2021): a class token first, its classifier reads it."""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Layer
from sttm.backbones.towers.tower import Tower


class ViT(Tower):
    family = "vit"
    example = "google/vit-base-patch16-224"
    classes = ("ViTForImageClassification", "ViTModel")

    def base(self, model: Any) -> Any:
        return getattr(model, "vit", model)

    def blocks(self, model: Any) -> Any:
        return self.base(model).layers

    def head_macs(self, model: Any, tokens: int) -> int:
        config = self.config(model)
        pooler = config.hidden_size * config.pooler_output_size if self.base(model).pooler is not None else 0
        return pooler + super().head_macs(model, tokens)

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.attention),), norm=block.layernorm_after, mlp=block.mlp)
