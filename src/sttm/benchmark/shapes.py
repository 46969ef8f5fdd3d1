"""What is timed: models by name, among them standard shapes with random weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForVideoClassification

from sttm.errors import SttmError
from sttm.models import load


def shape(family: str, classes: int = 400, **settings: int) -> nn.Module:
    """Return a model of a family with random weights, by default with the number of classes of Kinetics-400."""
    config = AutoConfig.for_model(family, num_labels=classes, **settings)
    model: nn.Module = AutoModelForVideoClassification.from_config(config)
    return model


def _videomae(width: int, layers: int, heads: int) -> nn.Module:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return shape("videomae", num_hidden_layers=layers, **sizes)


#: Standard shapes by name, built with random weights: the values of the weights do not change the time.
SHAPES: dict[str, Callable[[], nn.Module]] = {
    "videomae-s": lambda: _videomae(384, 12, 6),
    "videomae-b": lambda: _videomae(768, 12, 12),
    "videomae-l": lambda: _videomae(1024, 24, 16),
    "vivit-b": lambda: shape("vivit"),
    "timesformer-b": lambda: shape("timesformer"),
    "vjepa2-l": lambda: shape("vjepa2", 174, frames_per_clip=16),  # Something-Something's classes
}


def model_named(name: str, *, dry: bool = False) -> nn.Module:
    """Return a shape, or a model that `sttm.load` knows, in eval mode; a dry one of a shape has no values.

    Raises:
        SttmError: for a name that is neither.
    """
    if name in SHAPES:
        with torch.device("meta") if dry else nullcontext():
            return SHAPES[name]().eval()
    try:
        return load(name)
    except SttmError as error:
        raise SttmError(f"{error}; bench knows {', '.join(SHAPES)} too, with random weights") from error


def label_of(name: str) -> str:
    """Return how rows name a model."""
    return f"{name} (random weights)" if name in SHAPES else name
