"""Helpers that several tests use: small models of every family, clips for them, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

ROOT = Path(__file__).resolve().parents[1]
#: Frames, channels, height, width of the clips that the small models take.
CLIP = (8, 3, 32, 32)
_SIZES: dict[str, Any] = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_labels=5)


def videomae(**options: Any) -> Any:
    config = VideoMAEConfig(**_SIZES, image_size=32, patch_size=8, num_frames=8, intermediate_size=96, **options)
    return VideoMAEForVideoClassification(config)


def vivit() -> Any:
    config = VivitConfig(**_SIZES, image_size=32, tubelet_size=[2, 8, 8], num_frames=8, intermediate_size=96)
    return VivitForVideoClassification(config)


def timesformer(attention: str) -> Any:
    config = TimesformerConfig(
        **_SIZES, image_size=32, patch_size=8, num_frames=8, intermediate_size=96, attention_type=attention
    )
    return TimesformerForVideoClassification(config)


def vjepa2() -> Any:
    config = VJEPA2Config(**_SIZES, crop_size=32, patch_size=8, frames_per_clip=8, num_pooler_layers=1)
    config.pred_num_hidden_layers, config.pred_hidden_size, config.pred_num_attention_heads = 1, 48, 4
    return VJEPA2ForVideoClassification(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "videomae": videomae,
    "vivit": vivit,
    "timesformer-divided": lambda: timesformer("divided_space_time"),
    "timesformer-joint": lambda: timesformer("joint_space_time"),
    "timesformer-space": lambda: timesformer("space_only"),
    "vjepa2": vjepa2,
}


def lively(family: str, seed: int = 0) -> Any:
    """Return a small model in eval mode whose weights are far from a fresh start, so that a wrong token shows."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def stir(model: Any) -> None:
    """Move the mergers off their start, where motion adds nothing."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".merger." in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def pixels(clips: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(clips, *CLIP, generator=torch.Generator().manual_seed(seed))


def logits(model: Any, clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(clips).logits
    return out


class FixedModel(nn.Module):
    """A classifier whose logits are a function of its pixels; `calls` has the number of clips of each forward."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor], labels: list[str]) -> None:
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(id2label=dict(enumerate(labels)))
        self.calls: list[int] = []

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        self.calls.append(len(pixels))
        return SimpleNamespace(logits=self.answer(pixels))
