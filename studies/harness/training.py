"""The one training loop of the studies: small video transformers, an optimizer, a schedule of the learning rate.

Legend: B clips, T frames, H x W a frame, N tokens, C width, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from sttm.errors import SttmError

#: Muon for the matrices of the blocks and AdamW for all else, the mergers too; AdamW alone.
OPTIMIZERS = ("muon", "adamw")
MUON_WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Shape:
    """The size of a model and of its clips; a token spans two frames."""

    frames: int
    edge: int
    patch: int
    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: of `batch` clips each.
        lrs: peak learning rates, of Muon and of AdamW; with optimizer "adamw" the second is that of all parameters.
        smoothing: of the labels.
        motion_start: share of the steps before motion features are trained.
    """

    steps: int
    batch: int
    lrs: tuple[float, float]
    optimizer: str = "muon"
    smoothing: float = 0.0
    motion_start: float = 0.0


class Clips(Protocol):
    """The clips of one split, as training and evaluation ask for them."""

    def __len__(self) -> int: ...

    @property
    def classes(self) -> Tensor: ...

    def clips(self, indices: np.ndarray, frames: int) -> Tensor: ...

    def batch(self, indices: np.ndarray, frames: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]: ...


# --- the model --------------------------------------------------------------------------------------------------------


def new_model(shape: Shape, classes: int) -> Any:
    """Return a VideoMAE with new weights."""
    config = VideoMAEConfig(
        image_size=shape.edge, patch_size=shape.patch, num_frames=shape.frames, tubelet_size=2,
        hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width, num_labels=classes,
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    grid = shape.frames // 2, shape.edge // shape.patch, shape.edge // shape.patch
    model.videomae.embeddings.position_embeddings = positions(grid, shape.width)[None]
    # At this size the fused kernel is the slower one on a CPU, forwards and backwards.
    model.set_attn_implementation("eager" if shape.width < 128 else "sdpa")
    return model


def positions(grid: tuple[int, int, int], width: int) -> Tensor:
    """Return sinusoids of t, y and x side by side [N, C]; VideoMAE's own, of the token's number, learn slower."""
    # Any number of token frames spans the same time.
    steps = (np.arange(grid[0]) * 8 / grid[0], np.arange(grid[1]), np.arange(grid[2]))
    channels = (width // 4, 3 * width // 8, 3 * width // 8)
    waves = []
    for place, many in zip(np.meshgrid(*steps, indexing="ij"), channels, strict=True):
        angle = place.reshape(-1, 1) / 100 ** (np.arange(many // 2) / (many // 2))
        waves += [np.sin(angle), np.cos(angle)]
    return 0.5 * torch.from_numpy(np.concatenate(waves, axis=1)).float()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    return torch.autocast(device().type, torch.bfloat16)


# --- the loop ---------------------------------------------------------------------------------------------------------


def order(seed: int, step: int, batch: int, length: int) -> np.ndarray:
    """Return the clips of a step: every clip once an epoch, in an order that seed and epoch decide."""
    epoch, start = divmod(step * batch, length // batch * batch)
    return np.sort(np.random.default_rng([seed, epoch]).permutation(length)[start : start + batch])


def lr_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear up over the first tenth, then a half cosine down to zero."""
    warm = 0.1 * steps
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + float(np.cos(np.pi * max(0.0, (step - warm) / (steps - warm)))))


def optimizers_of(model: nn.Module, lrs: tuple[float, float], optimizer: str = "muon") -> list[torch.optim.Optimizer]:
    """Return the optimizers of one of `OPTIMIZERS`: Muon, where there is any, before AdamW.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Raises:
        SttmError: for another optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise SttmError(f"unknown optimizer {optimizer!r}; choose {' or '.join(OPTIMIZERS)}")
    named = {name: p for name, p in model.named_parameters() if ".layer." in name and ".merger." not in name}
    matrices = {id(p) for p in named.values() if p.ndim == 2 and optimizer == "muon"}
    hidden = [p for p in model.parameters() if id(p) in matrices]
    motion = [p for name, p in model.named_parameters() if ".merger.motion." in name]
    apart = matrices | {id(p) for p in motion}
    others = [p for p in model.parameters() if id(p) not in apart]
    groups = [dict(params=others, motion=False)] + ([dict(params=motion, motion=True)] if motion else [])
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lrs[1], betas=(0.9, 0.98), weight_decay=0.0)]
    if hidden:
        decay = MUON_WEIGHT_DECAY
        muon = torch.optim.Muon(hidden, lr=lrs[0], momentum=0.95, weight_decay=decay, adjust_lr_fn="original")
        found.insert(0, muon)
    return found


def train(
    model: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    steps: int,
    optimizers: list[torch.optim.Optimizer],
    *,
    factor: Callable[[int, int], float] = lr_factor,
    motion_start: float = 0.0,
    checkpoint: Path | None = None,
    after_step: Callable[[int], None] | None = None,
) -> float:
    """Train a model to its last step, going on from a checkpoint if there is one; return the seconds it took.

    Args:
        loss_of_step: the loss of the batch of a step, counted from 0.
        optimizers: at their peak learning rates.
        factor: the share of the peaks at a step of so many.
        motion_start: share of the steps before motion features are trained.
        checkpoint: where to save every 250 steps.
        after_step: called with each step once it is done.
    """
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first, earlier = _restore(checkpoint, model, optimizers)
    started = time.perf_counter() - earlier
    for step in range(first, steps):
        model.train()
        loss = loss_of_step(step)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                waits = group.get("motion", False) and step < motion_start * steps
                group["lr"] = 0.0 if waits else lr * factor(step, steps)
            optimizer.step()
        if after_step is not None:
            after_step(step)
        if checkpoint is not None and (step + 1) % 250 == 0:
            _save(checkpoint, model, optimizers, step + 1, time.perf_counter() - started)
            print(f"{checkpoint.stem}: step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    return time.perf_counter() - started


def fit(
    model: nn.Module,
    clips: Clips,
    frames: int,
    seed: int,
    recipe: Recipe,
    *,
    optimizers: list[torch.optim.Optimizer] | None = None,
    checkpoint: Path | None = None,
    after_step: Callable[[int], None] | None = None,
) -> float:
    """Train a model, plain or merged, to classify clips; return the seconds it took."""
    model.to(device()).train()
    torch.manual_seed(seed)

    def loss_of_step(step: int) -> Tensor:
        indices = order(seed, step, recipe.batch, len(clips))
        pixels_BT3HW, classes_B = clips.batch(indices, frames, np.random.default_rng([seed, step]))
        with autocast():
            logits_BK = model(pixels_BT3HW.to(device())).logits
        return cross_entropy(logits_BK.float(), classes_B.to(device()), label_smoothing=recipe.smoothing)

    chosen = optimizers or optimizers_of(model, recipe.lrs, recipe.optimizer)
    return train(
        model, loss_of_step, recipe.steps, chosen,
        motion_start=recipe.motion_start, checkpoint=checkpoint, after_step=after_step,
    )  # fmt: skip


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, frames: int) -> np.ndarray:
    """Return the class that the model gives each clip: [B]."""
    model.to(device()).eval()
    predicted = []
    for start in range(0, len(clips), 100):
        indices = np.arange(start, min(start + 100, len(clips)))
        with autocast():
            logits_BK = model(clips.clips(indices, frames).to(device())).logits
        predicted.append(logits_BK.argmax(-1).cpu().numpy())
    return np.concatenate(predicted)


def _restore(checkpoint: Path | None, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load a checkpoint; return the step to go on with and the seconds spent before."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(own)
    return state["step"], state["seconds"]


def _save(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    own = [optimizer.state_dict() for optimizer in optimizers]
    state = dict(model=model.state_dict(), optimizers=own, step=step, seconds=seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
