"""Models to start from: backbones pre-trained to track what moves, and plain models trained on a synthetic dataset.

A backbone is pre-trained once a seed, on synthetic clips of its own, to predict where everything is in every frame and
how far it goes to the next, and the shape, texture and setting. It has seen no class of any dataset. The plain models
that `tune`, `offshelf`, `equal`, `ablation` and `gates` start from stop before they saturate, so that a method can show
what it adds as well as what it loses.

Legend: B clips, T frames, N tokens, C width.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from harness.data import CACHE
from harness.synthetic import MIRRORED_TRACKS, NUM_NAMES, TRACKS, SyntheticSet, synthetic_set
from harness.training import Recipe, Shape, autocast, device, fit, new_model, optimizers_of, order, train
from sttm.synth.clips import CLASSES

TRACKING_WEIGHT = 8.0  # of positions and displacements beside the names of things, in pre-training
STRIDE = 2.0  # scales a displacement between two token frames to about [-1, 1]


@dataclass(frozen=True)
class Scale:
    """How large everything is in the studies of trained models.

    Attributes:
        shape: of the backbone on 8 frames.
        clips: in each split.
        pretrain_steps, steps, tuning: of the backbones, the plain models, the runs.
        batch, lrs: of all three; peaks of Muon and of AdamW.
    """

    shape: Shape
    clips: dict[str, int]
    pretrain_steps: int
    steps: dict[str, int]
    tuning: dict[str, int]
    batch: int
    lrs: tuple[float, float]


SCALES = {
    "small": Scale(
        Shape(frames=8, edge=48, patch=6, width=64, depth=4, heads=2),
        clips=dict(pretrain=16_000, train=12_000, validation=1_440, test=3_600),
        pretrain_steps=3_000,
        steps=dict(motion=2_500, scene=400),
        tuning=dict(motion=300, scene=200),
        batch=32,
        lrs=(0.02, 2e-3),
    ),
    "large": Scale(
        Shape(frames=8, edge=112, patch=8, width=192, depth=8, heads=3),
        clips=dict(pretrain=60_000, train=40_000, validation=3_600, test=7_200),
        pretrain_steps=5_000,
        steps=dict(motion=10_000, scene=4_000),
        tuning=dict(motion=2_000, scene=1_500),
        batch=64,
        lrs=(0.02, 1e-3),
    ),
}
TUNING_SEED = 100  # added to the seed of a run, so that tuning brings the clips in another order than training did
TUNING_LR = 0.3  # of the peak learning rates of training


def clips_of(kind: str, split: str, scale: str) -> SyntheticSet:
    """Return a split of a synthetic dataset at a scale."""
    size = SCALES[scale]
    return synthetic_set(kind, split, size.shape.edge, size.clips[split], scale)


def pretrained(seed: int, shape: Shape, scale: str = "small") -> dict[str, Tensor]:
    """Return the weights of the backbone of a seed; trains it at the first call, going on from where it stopped."""
    size, own = SCALES[scale], SCALES[scale].shape
    same = replace(shape, frames=own.frames) == own
    name = f"backbone-{seed}" if same else "-".join([f"backbone-{seed}", *(f"{value}" for value in astuple(shape))])
    done = CACHE / scale / f"{name}.safetensors"
    if done.exists():
        return load_file(done)
    shape = own if same else shape
    torch.manual_seed(seed)
    model = new_model(shape, 1)
    heads = nn.ModuleList([nn.Linear(shape.width, 3 * TRACKS), nn.Linear(shape.width, sum(NUM_NAMES))])
    whole = nn.ModuleList([model, heads]).to(device())
    data = clips_of("motion", "pretrain", scale)

    def loss_of_step(step: int) -> Tensor:
        return _tracking_loss(model, heads, data, shape.frames, order(seed, step, size.batch, len(data)), seed, step)

    train(whole, loss_of_step, size.pretrain_steps, optimizers_of(whole, size.lrs), checkpoint=done.with_suffix(".pt"))
    save_file({key: value.cpu().contiguous() for key, value in model.videomae.state_dict().items()}, done)
    done.with_suffix(".pt").unlink(missing_ok=True)
    return load_file(done)


def _tracking_loss(
    model: Any, heads: nn.ModuleList, data: SyntheticSet, frames: int, indices: np.ndarray, seed: int, step: int
) -> Tensor:
    """Return the loss of one batch: positions in both frames of a token, displacements to the next, names of things."""
    pixels_BT3HW, told = data.clips(indices, frames), {key: value[indices] for key, value in data.targets.items()}
    tracks_BTK = told["tracks"][:, :: data.pixels.shape[1] // frames]
    mirror, reverse = np.random.default_rng([seed, step]).integers(2, size=2)
    if mirror:
        pixels_BT3HW, tracks_BTK = pixels_BT3HW.flip(-1), tracks_BTK * MIRRORED_TRACKS
    if reverse:
        pixels_BT3HW, tracks_BTK = pixels_BT3HW.flip(1), tracks_BTK.flip(1)
    with autocast():
        x_BNC = model.videomae(pixels_BT3HW.to(device())).last_hidden_state
        # [B T/2*S C] -> [B T/2 C] -> [B T/2 3*11]
        read_BTK = heads[0](x_BNC.unflatten(1, (frames // 2, -1)).mean(2)).float()
        named_BK = heads[1](model.fc_norm(x_BNC.mean(1)))
    shown_BTK = tracks_BTK.unflatten(1, (frames // 2, 2)).flatten(2).to(device())
    moved_BTK = STRIDE * shown_BTK[..., :TRACKS].diff(dim=1)
    loss = TRACKING_WEIGHT * smooth_l1_loss(read_BTK[..., : 2 * TRACKS], shown_BTK, beta=0.1)
    loss = loss + TRACKING_WEIGHT * smooth_l1_loss(read_BTK[:, :-1, 2 * TRACKS :], moved_BTK, beta=0.1)
    for part_BK, name_B in zip(named_BK.float().split(NUM_NAMES, -1), told["names"].T, strict=True):
        loss = loss + cross_entropy(part_BK, name_B.to(device()))
    return loss


def from_backbone(seed: int, shape: Shape, classes: int, scale: str = "small") -> Any:
    """Return the backbone of a seed with a new head; its positions are a formula, so it takes any number of frames."""
    weights = pretrained(seed, shape, scale)
    torch.manual_seed(seed)
    model = new_model(shape, classes)
    model.videomae.load_state_dict(weights)
    return model


def plain(seed: int, kind: str, scale: str, frames: int = 8) -> Any:
    """Return the plain model of a seed on a synthetic dataset; trains it at the first call, going on if stopped."""
    size, of_frames = SCALES[scale], "" if frames == 8 else f"-{frames}-frames"
    shape, done = replace(size.shape, frames=frames), CACHE / scale / f"plain-{kind}-{seed}{of_frames}.safetensors"
    if not done.exists():
        model = from_backbone(seed, shape, len(CLASSES[kind]), scale)
        recipe = Recipe(size.steps[kind], size.batch, size.lrs)
        fit(model, clips_of(kind, "train", scale), frames, seed, recipe, checkpoint=done.with_suffix(".pt"))
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, done)
        done.with_suffix(".pt").unlink(missing_ok=True)
    model = new_model(shape, len(CLASSES[kind]))
    model.load_state_dict(load_file(done))
    # What is put in next is drawn from the seed.
    torch.manual_seed(seed)
    return model.to(device())


def tuning_recipe(kind: str, scale: str) -> Recipe:
    """Return the short training that every run of the studies of trained models gets."""
    size = SCALES[scale]
    return Recipe(size.tuning[kind], size.batch, (TUNING_LR * size.lrs[0], TUNING_LR * size.lrs[1]))


def tune(model: nn.Module, kind: str, seed: int, scale: str, frames: int) -> float:
    """Tune a merged or plain model of a seed; return the seconds it took."""
    clips = clips_of(kind, "train", scale)
    return fit(model, clips, frames, seed + TUNING_SEED, tuning_recipe(kind, scale))
