"""Helpers that several tests use: small models of every family, clips for them, and what they answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoPrismForVideoClassification,
    VideoPrismVisionConfig,
    ViTConfig,
    ViTForImageClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    XCLIPVisionConfig,
    XCLIPVisionModel,
)

from sttm.backbones import backbone_of
from sttm.merging.tokens import MergeMap
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


def vjepa2_features() -> Any:
    return VJEPA2Model(vjepa2().config)


#: A picture of 6 x 6 patches.
_PICTURE: dict[str, Any] = _SIZES | dict(image_size=24, patch_size=4)


def clip(**options: Any) -> Any:
    sizes = _PICTURE | dict(intermediate_size=96, projection_dim=20)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes | options))


def siglip(**options: Any) -> Any:
    return SiglipVisionModel(SiglipVisionConfig(**_PICTURE | dict(intermediate_size=96) | options))


def dinov2(**options: Any) -> Any:
    return Dinov2ForImageClassification(Dinov2Config(**_PICTURE | dict(mlp_ratio=2, use_swiglu_ffn=True) | options))


def dinov2_registers(**options: Any) -> Any:
    sizes = _PICTURE | dict(mlp_ratio=2, num_register_tokens=3)
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes | options))


def dinov3(**options: Any) -> Any:
    sizes = _PICTURE | dict(intermediate_size=96, use_gated_mlp=True, num_register_tokens=2)
    return DINOv3ViTModel(DINOv3ViTConfig(**sizes | options))


def xclip(**options: Any) -> Any:
    return XCLIPVisionModel(XCLIPVisionConfig(**_PICTURE | dict(intermediate_size=96, num_frames=4) | options))


def videoprism(frames: int = 4, **options: Any) -> Any:
    sizes: dict[str, Any] = dict(hidden_size=48, num_attention_heads=4, num_labels=5, intermediate_size=96)
    sizes |= dict(image_size=24, tubelet_size=[1, 4, 4], num_frames=frames, num_spatial_layers=4, num_temporal_layers=1)
    return VideoPrismForVideoClassification(VideoPrismVisionConfig(**sizes | options))


FAMILIES: dict[str, Callable[[], Any]] = {
    "videomae": videomae,
    "vivit": vivit,
    "timesformer-divided": lambda: timesformer("divided_space_time"),
    "timesformer-joint": lambda: timesformer("joint_space_time"),
    "timesformer-space": lambda: timesformer("space_only"),
    "vjepa2": vjepa2,
    "vit": vit,
}
#: One of each family, for what does not depend on TimeSformer's kind of attention.
ONE_EACH = [name for name in FAMILIES if name not in ("timesformer-joint", "timesformer-space")]
#: Families whose blocks are built as one of `FAMILIES`, for the parts of the contract that take little time; what takes
#: long (threads, compilers, exporters, every method) runs on those that differ (`DISTINCT`).
MORE: dict[str, Callable[[], Any]] = {
    "vjepa2-features": vjepa2_features,
    "clip": clip,
    "siglip": siglip,
    "dinov2": dinov2,
    "dinov2-registers": dinov2_registers,
    "dinov3": dinov3,
    "xclip": xclip,
    "videoprism": videoprism,
}
ALL = FAMILIES | MORE
#: Rotary positions by an argument; a head whose keys count by size; tokens of the layer's own and of no clip's grid.
DISTINCT = ["dinov3", "siglip", "xclip"]


def lively(family: str, seed: int = 0) -> Any:
    """Return a small model in eval mode whose weights are far from a fresh start, so that a wrong token shows."""
    torch.manual_seed(seed)
    model = ALL[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def auto_class(model: Any) -> Any:
    """Return transformers' auto class of classifiers such as this one."""
    return getattr(transformers, f"AutoModelFor{type(model).__name__.partition('For')[2]}")


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


def answer(model: Any, clips: torch.Tensor) -> torch.Tensor:
    """Return what a model says of clips: its logits, its pooled features, or the mean of its tokens."""
    features = "VJEPA2Model" in {cls.__name__ for cls in type(unwrap(model)).__mro__}
    return said(model(clips, skip_predictor=True) if features else model(clips))


def said(out: Any) -> torch.Tensor:
    """Return what counts of an output of a model."""
    for name in ("logits", "image_embeds", "pooler_output"):
        if (found := getattr(out, name, None)) is not None:
            return cast(torch.Tensor, found.flatten(1))
    return cast(torch.Tensor, out.last_hidden_state.mean(1))


def logits(model: Any, clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return answer(model, clips)


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


def random_map(
    frames_out: int = 2,
    slots_out: int = 6,
    seed: int = 0,
    trajectory: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
) -> MergeMap:
    """Return a map of 4 frames of 3 x 5 tokens, each of which goes to a random slot of its own window."""
    draw, total = np.random.default_rng(seed), frames_out * slots_out
    window_T1 = np.arange(4)[:, None] // (4 // frames_out)
    slot_TS = torch.from_numpy(draw.integers(0, slots_out, (4, 15)) + window_T1 * slots_out)
    place = torch.zeros(1, total, 3) if position is None else position
    grid = ((4, 15), (frames_out, slots_out))
    return MergeMap(slot_TS.reshape(1, 60), torch.ones(1, total), place, grid, trajectory=trajectory)


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
