"""CLIP's picture tower (Radford et al., ICML 2021): a class token first, read by the projection.

Its classifier reads the mean of the patches. Of a CLIPModel, and of a video-language model, give the tower alone:
`sttm.apply(model.vision_model)`.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Attention, Layer, Pooling, linear_macs
from sttm.backbones.towers.tower import Tower


class CLIP(Tower):
    family = "clip"
    example = "openai/clip-vit-base-patch16"
    classes = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPForImageClassification")

    def blocks(self, model: Any) -> Any:
        return self.base(model).encoder.layers

    def head_macs(self, model: Any, tokens: int) -> int:
        return super().head_macs(model, tokens) + linear_macs(getattr(model, "visual_projection", None))

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.self_attn),), norm=block.layer_norm2, mlp=block.mlp)

    def pooling(self, model: Any) -> Pooling | None:
        return Pooling(model.classifier, "mean") if hasattr(model, "classifier") else None
