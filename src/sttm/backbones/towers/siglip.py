"""SigLIP's picture tower (Zhai et al., ICCV 2023), and SigLIP 2's of fixed resolution: no class token.

A learned query attends over the patches at the end; in the classifier their mean is read instead. SigLIP 2's
checkpoints of fixed resolution are of SigLIP's classes. Those of any resolution ("naflex") are not here: each picture
of a batch has a grid and a padding of its own.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Layer, Pooling
from sttm.backbones.towers.tower import Tower


class SigLIP(Tower):
    family = "siglip"
    example = "google/siglip2-base-patch16-224"
    classes = ("SiglipVisionModel", "SiglipForImageClassification")
    class_token = False

    def prefix(self, config: Any) -> int:
        return 0

    def blocks(self, model: Any) -> Any:
        return self.base(model).encoder.layers

    def head_macs(self, model: Any, tokens: int) -> int:
        if not self.base(model).use_head:
            return super().head_macs(model, tokens)
        width = self.width(model)
        attention = 2 * width**2 + 2 * tokens * width**2 + 2 * tokens * width
        return super().head_macs(model, tokens) + attention + self.mlp_weights(model)

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.self_attn),), norm=block.layer_norm2, mlp=block.mlp)

    def pooling(self, model: Any) -> Pooling | None:
        if hasattr(model, "classifier"):
            return Pooling(model.classifier, "mean")
        return Pooling(model.head.attention, "keys") if model.use_head else None
