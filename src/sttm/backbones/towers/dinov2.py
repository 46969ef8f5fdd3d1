"""DINOv2 (Oquab et al., TMLR 2024), also with registers (Darcet et al., ICLR 2024): layer scale, MLP plain or gated.

The class token and the registers come first; the classifier reads the class token and the mean of the patches. Learned
positions are interpolated to pictures of any size.
"""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Pooling
from sttm.backbones.towers.tower import Tower


class DINOv2(Tower):
    family = "dinov2"
    example = "facebook/dinov2-base"
    classes = ("Dinov2Model", "Dinov2ForImageClassification")
    any_size = True

    def base(self, model: Any) -> Any:
        return getattr(model, "dinov2", model)

    def blocks(self, model: Any) -> Any:
        return self.base(model).encoder.layer

    def mlp_weights(self, model: Any) -> int:
        config, mlp = self.config(model), self.blocks(model)[0].mlp
        if config.use_swiglu_ffn:
            return 3 * config.hidden_size * int(mlp.up_proj.out_features)
        return 2 * config.hidden_size * int(config.hidden_size * config.mlp_ratio)

    def pooling(self, model: Any) -> Pooling | None:
        return Pooling(model.classifier, "class and mean") if hasattr(model, "classifier") else None


class DINOv2WithRegisters(DINOv2):
    family = "dinov2-registers"
    example = "facebook/dinov2-with-registers-base"
    classes = ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")

    def base(self, model: Any) -> Any:
        return getattr(model, "dinov2_with_registers", model)

    def prefix(self, config: Any) -> int:
        return 1 + int(config.num_register_tokens)
