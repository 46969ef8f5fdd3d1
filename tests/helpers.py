"""Helpers that several tests use: small models of every family, clips for them, and what they answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from sttm.backbones import backbone_of
from sttm.patching.api import unwrap

ROOT = Path(__file__).resolve().parents[1]
#: Frames, channels, height, width of the clips that the small models take.
CLIP = (8, 3, 32, 32)
_SIZES: dict[str, Any] = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_labels=5)


def videomae(frames: int = 8, **options: Any) -> Any:
    sizes = _SIZES | dict(image_size=32, patch_size=8, num_frames=frames, intermediate_size=96)
    return VideoMAEForVideoClassification(VideoMAEConfig(**sizes | options))


def vivit(frames: int = 8, **options: Any) -> Any:
    sizes = _SIZES | dict(image_size=32, tubelet_size=[2, 8, 8], num_frames=frames, intermediate_size=96)
    return VivitForVideoClassification(VivitConfig(**sizes | options))


def vit(**options: Any) -> Any:
    sizes = _SIZES | dict(image_size=32, patch_size=4, intermediate_size=96)
    return ViTForImageClassification(ViTConfig(**sizes | options))


def timesformer(attention: str = "divided_space_time", frames: int = 8, **options: Any) -> Any:
    sizes = _SIZES | dict(image_size=32, patch_size=8, num_frames=frames, intermediate_size=96)
    return TimesformerForVideoClassification(TimesformerConfig(**sizes | options, attention_type=attention))


def vjepa2(frames: int = 8, **options: Any) -> Any:
    sizes = _SIZES | dict(crop_size=32, patch_size=8, frames_per_clip=frames, num_pooler_layers=1)
    config = VJEPA2Config(**sizes | options)
    config.pred_num_hidden_layers, config.pred_hidden_size, config.pred_num_attention_heads = 1, 48, 4
    return VJEPA2ForVideoClassification(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "videomae": videomae,
    "vivit": vivit,
    "timesformer-divided": lambda: timesformer("divided_space_time"),
    "timesformer-joint": lambda: timesformer("joint_space_time"),
    "timesformer-space": lambda: timesformer("space_only"),
    "vjepa2": vjepa2,
    "vit": vit,
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


def pixels(model: Any, clips: int = 2, seed: int = 1) -> torch.Tensor:
    """Return random pixels in the shape that a forward of the model takes."""
    inner = unwrap(model)
    backbone = backbone_of(inner)
    shape = backbone.pixels_shape(clips, backbone.clip_shape(inner))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


# --- training ---------------------------------------------------------------------------------------------------------

TINY_SIZES: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=4, num_attention_heads=2)
TINY_CLASSES = ("left hook", "Right_hook", "jab")
_TINY: dict[str, Callable[..., Any]] = {
    "videomae": videomae,
    "vivit": vivit,
    "timesformer": timesformer,
    "vjepa2": vjepa2,
}


def tiny_model(family: str, frames: int = 4) -> Any:
    """Return a model of a family that trains within a second, with three classes."""
    mlp = {} if family == "vjepa2" else {"intermediate_size": 48}
    model = _TINY[family](frames=frames, **TINY_SIZES, **mlp, num_labels=len(TINY_CLASSES))
    model.config.id2label = dict(enumerate(TINY_CLASSES))
    return model


#: A run of eight steps, with most of what makes a run random.
RECIPE = """
data:
  root: {videos}/videos
  train: {{list: {videos}/train.json}}
  validation: {{list: {videos}/validation.json}}
  labels: {videos}/labels.json
  workers: 0
model: {{start: {start}, drop_path: 0.2}}
merging: {{compute: 0.7}}
augment: {{mixup: 0.8, cutmix: 1.0, repeats: 2, erasing: 0.3}}
optimizer: {{lr: 1e-3, steps: 8, batch_size: 8, micro_batch: 4, ema: 0.9, clip_norm: 1.0, smoothing: 0.1}}
run: {{output: {output}, device: cpu, trackers: [], save_every: 3, evaluate_every: 4, log_every: 2}}
"""


def write_recipe(folder: Path, videos: Path, start: Path) -> Path:
    """Write RECIPE to c.yaml in a folder; its run goes to the folder's run/."""
    (folder / "c.yaml").write_text(RECIPE.format(videos=videos, start=start, output=folder / "run"))
    return folder / "c.yaml"


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors that a run ends with: those of the model, and the training state of its last checkpoint."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return load_file(run / "model" / "model.safetensors") | load_file(last / "training.safetensors")


def assert_equal_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Assert that both hold the same names and are equal to the bit."""
    assert one.keys() == other.keys() and len(one) > 100
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- folders that one run uses at a time ------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from sttm.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds the lock of a folder."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()
