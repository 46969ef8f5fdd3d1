"""Where methods meet: one small video transformer, made clips in memory, one recipe for all.

A backbone is pre-trained once a seed, on clips of its own, to read off what a clip shows: where everything is in every
frame and how far it goes to the next, and the shape, texture and setting. It has then seen no class of *motion* or
*scene*. From the backbone of each seed a plain model is trained on each set. Every run starts from the plain model of
its seed, puts its method in, and is tuned: the same clips in the same order, the same steps, the same rates; plain too.
The plain models stop before they saturate, so that a method can show what it adds as well as what it loses.

Legend: B clips, T frames, H x W a picture, 3 colours, N tokens, C width, K classes.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from sttm.synth.clips import CLASSES, design, render
from sttm.synth.drawing import BACKDROPS, SHAPES, TEXTURES
from sttm.synth.motions import MOTION_CLASSES, MOTIONS

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "cache" / "arena"
FRAMES = 16  # of a made clip; a model sees every second one, or all
SEEDS = {"pretrain": 200, "train": 201, "validation": 202, "test": 204}  # of the made clips; never of a training
TRACKS, KINDS_OF_THINGS = 11, (len(SHAPES), len(TEXTURES), len(BACKDROPS))
HELP = 8.0  # weight of places and ways beside the names of things, in pre-training
STRIDE = 2.0  # scales a way between two token frames to about [-1, 1]


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        edge, patch, width, depth, heads: of the backbone; a token spans two frames.
        clips: made clips in each split.
        pretrain_steps, steps, tuning, batch: of the backbones, the plain models, the runs.
        rates: peaks, of Muon and of AdamW.
    """

    edge: int
    patch: int
    width: int
    depth: int
    heads: int
    clips: dict[str, int]
    pretrain_steps: int
    steps: dict[str, int]
    tuning: dict[str, int]
    batch: int
    rates: tuple[float, float]


SCALES = {
    "small": Scale(
        *(48, 6, 64, 4, 2),
        clips=dict(pretrain=16_000, train=12_000, validation=1_440, test=3_600),
        pretrain_steps=3_000,
        steps=dict(motion=2_500, scene=400),
        tuning=dict(motion=300, scene=200),
        batch=32,
        rates=(0.02, 2e-3),
    ),
    "large": Scale(
        *(112, 8, 192, 8, 3),
        clips=dict(pretrain=60_000, train=40_000, validation=3_600, test=7_200),
        pretrain_steps=5_000,
        steps=dict(motion=10_000, scene=4_000),
        tuning=dict(motion=2_000, scene=1_500),
        batch=64,
        rates=(0.02, 1e-3),
    ),
}
TUNING_SEED = 100  # added to the seed of a run, so that tuning brings the clips in another order than training did
TUNING_RATE = 0.3  # of the peak rates of training


# --- clips ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Clips of one split: pixels [B, T, H, W, 3] in 8 bits, and their classes (or what pre-training reads off)."""

    pixels: np.ndarray
    targets: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    def clips(self, indices: np.ndarray, frames: int) -> Tensor:
        """Normalised pixels [B, T, 3, H, W]."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels[indices, :: FRAMES // frames]))
        return (pixels.permute(0, 1, 4, 2, 3).float() - 110) / 60


@cache
def split_of(kind: str, name: str, scale: str) -> Split:
    """A split of *motion* or *scene*; drawn once and kept."""
    size = SCALES[scale]
    stem = CACHE / scale / f"{kind}-{name}"
    if not stem.with_suffix(".npz").exists():
        _draw(stem, kind, SEEDS[name], size.clips[name], size.edge)
    kept = np.load(stem.with_suffix(".npz"))
    return Split(np.load(stem.with_suffix(".npy"), mmap_mode="r"), {key: torch.from_numpy(kept[key]) for key in kept})


def _draw(stem: Path, kind: str, seed: int, count: int, edge: int) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    part = stem.with_suffix(".part")
    pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (count, FRAMES, edge, edge, 3))
    told = []
    with ProcessPoolExecutor() as pool:
        jobs = ((kind, index, seed, edge) for index in range(count))
        for index, (picture, targets) in enumerate(pool.map(_drawn, jobs, chunksize=64)):
            pixels[index] = picture
            told.append(targets)
    pixels.flush()
    part.replace(stem.with_suffix(".npy"))
    np.savez(stem.with_suffix(".npz"), **{key: np.stack([targets[key] for targets in told]) for key in told[0]})


def _drawn(job: tuple[str, int, int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    kind, index, seed, edge = job
    pictures, label, _ = render(kind, index, seed, frames=FRAMES, size=edge)
    targets: dict[str, Any] = {"classes": np.int64(CLASSES[kind].index(label))}
    if kind == "motion":
        clip, _ = design(kind, index, seed, frames=FRAMES, size=112)
        look = clip.looks["target"]
        names = (
            list(SHAPES).index(look.shape),
            list(TEXTURES).index(look.texture),
            list(BACKDROPS).index(clip.backdrop),
        )
        targets |= {"tracks": track_targets(clip.tracks), "names": np.array(names, np.int64)}
    return pictures, targets


def track_targets(tracks: dict[str, Any]) -> np.ndarray:
    """What the helping head reads off each frame, of tracks in a picture 112 wide: [T, 11], each around [-1, 1]."""
    target, two, passer = (np.array(tracks[name]) for name in ("target", "pair", "passer"))
    size = np.log(target[:, 2:3] / 14) * 2
    turn = np.stack([np.sin(target[:, 3]), np.cos(target[:, 3])], axis=1)
    # Which of the two is which cannot be seen: their middle and how far they are apart can.
    one, other = two[:, :2], two[:, 2:]
    apart = np.linalg.norm(one - other, axis=1, keepdims=True) / 28 - 1
    places = np.concatenate([target[:, :2], (one + other) / 2, passer[:, :2]], axis=1) / 56 - 1
    return np.concatenate([places, apart, size, turn, passer[:, 2:] * 2 - 1], axis=1).astype(np.float32)


# What a mirror does to the tracks: x of the target, the pair and the passer, and the way that the target points.
IN_A_MIRROR = torch.tensor([-1, 1, -1, 1, -1, 1, 1, 1, 1, -1, 1])


@cache
def changed_classes(kind: str) -> tuple[Tensor, Tensor]:
    """What each class becomes in a mirror, and played backwards."""
    if kind == "scene":
        same = torch.arange(len(CLASSES[kind]))
        return same, same
    swap = {"left": "right", "right": "left", "clockwise": "anticlockwise", "anticlockwise": "clockwise"}
    mirrored = [" ".join(swap.get(word, word) for word in label.split()) for label in MOTION_CLASSES]
    labels = {motion.template: motion.label for motion in MOTIONS}
    backwards = [labels[motion.backwards] for motion in MOTIONS]
    return tuple(torch.tensor([MOTION_CLASSES.index(label) for label in names]) for names in (mirrored, backwards))  # type: ignore[return-value]


# --- the backbone -----------------------------------------------------------------------------------------------------


def new_model(scale: str, classes: int, frames: int) -> Any:
    """A VideoMAE from nothing; a token spans two frames."""
    size = SCALES[scale]
    config = VideoMAEConfig(
        image_size=size.edge, patch_size=size.patch, num_frames=frames, tubelet_size=2, hidden_size=size.width,
        num_hidden_layers=size.depth, num_attention_heads=size.heads, intermediate_size=4 * size.width,
        num_labels=classes,
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    grid = frames // 2, size.edge // size.patch, size.edge // size.patch
    model.videomae.embeddings.position_embeddings = positions(grid, size.width)[None]
    # At this size the fused kernel is the slower one on a CPU, forwards and backwards.
    model.set_attn_implementation("eager" if scale == "small" else "sdpa")
    return model


def positions(grid: tuple[int, int, int], width: int) -> Tensor:
    """Sinusoids of t, y and x side by side: [N, C]. VideoMAE's own, of the token's number, take far longer to read."""
    # Any number of token frames spans the same time.
    steps = (np.arange(grid[0]) * 8 / grid[0], np.arange(grid[1]), np.arange(grid[2]))
    channels = (width // 4, 3 * width // 8, 3 * width // 8)
    waves = []
    for place, many in zip(np.meshgrid(*steps, indexing="ij"), channels, strict=True):
        angle = place.reshape(-1, 1) / 100 ** (np.arange(many // 2) / (many // 2))
        waves += [np.sin(angle), np.cos(angle)]
    return 0.5 * torch.from_numpy(np.concatenate(waves, axis=1)).float()


def pretrained(seed: int, scale: str) -> dict[str, Tensor]:
    """The backbone of a seed; trained once and kept, going on from where it stopped."""
    size, done = SCALES[scale], CACHE / scale / f"backbone-{seed}.safetensors"
    if done.exists():
        return load_file(done)
    data, part = split_of("motion", "pretrain", scale), done.with_suffix(".pt")
    torch.manual_seed(seed)
    model, names = new_model(scale, 1, 8), sum(KINDS_OF_THINGS)
    heads = nn.ModuleList([nn.Linear(size.width, 3 * TRACKS), nn.Linear(size.width, names)])
    whole = nn.ModuleList([model, heads]).to(device())
    optimizers, done_steps = optimizers_of(whole, size.rates), 0
    if part.exists():
        state = torch.load(part, weights_only=True)
        whole.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        done_steps = state["step"]
    for step in range(done_steps, size.pretrain_steps):
        indices = order(seed, step, size.batch, len(data))
        pixels_BT3HW, told = data.clips(indices, 8), {key: value[indices] for key, value in data.targets.items()}
        tracks_BTK = told["tracks"][:, ::2]
        mirror, reverse = np.random.default_rng([seed, step]).integers(2, size=2)
        if mirror:
            pixels_BT3HW, tracks_BTK = pixels_BT3HW.flip(-1), tracks_BTK * IN_A_MIRROR
        if reverse:
            pixels_BT3HW, tracks_BTK = pixels_BT3HW.flip(1), tracks_BTK.flip(1)
        with autocast():
            x_BNC = model.videomae(pixels_BT3HW.to(device())).last_hidden_state
            # [B T/2*S C] -> [B T/2 C] -> [B T/2 3*11]: places in both frames of a token, the way to the next token
            read_BTK = heads[0](x_BNC.unflatten(1, (4, -1)).mean(2)).float()
            named_BK = heads[1](model.fc_norm(x_BNC.mean(1)))
        shown_BTK = tracks_BTK.unflatten(1, (4, 2)).flatten(2).to(device())
        ways_BTK = STRIDE * shown_BTK[..., :TRACKS].diff(dim=1)
        loss = HELP * smooth_l1_loss(read_BTK[..., : 2 * TRACKS], shown_BTK, beta=0.1)
        loss = loss + HELP * smooth_l1_loss(read_BTK[:, :-1, 2 * TRACKS :], ways_BTK, beta=0.1)
        for part_BK, name_B in zip(named_BK.float().split(KINDS_OF_THINGS, -1), told["names"].T, strict=True):
            loss = loss + cross_entropy(part_BK, name_B.to(device()))
        advance(loss, optimizers, whole, shape_of_rate(step, size.pretrain_steps))
        if (step + 1) % 250 == 0:
            save_state(part, whole, optimizers, step + 1)
            print(f"backbone {seed}: {step + 1}/{size.pretrain_steps}, loss {loss.item():.3f}", flush=True)
    weights = {key: value.contiguous() for key, value in model.videomae.state_dict().items()}
    save_file(weights, done)
    part.unlink(missing_ok=True)
    return weights


def backbone(seed: int, kind: str, scale: str, frames: int) -> Any:
    """The backbone of a seed with a new head; its positions are a formula, so it takes any number of frames."""
    weights = pretrained(seed, scale)
    torch.manual_seed(seed)
    model = new_model(scale, len(CLASSES[kind]), frames)
    model.videomae.load_state_dict(weights)
    return model


# --- one training -----------------------------------------------------------------------------------------------------


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    return torch.autocast(device().type, torch.bfloat16)


def order(seed: int, step: int, batch: int, length: int) -> np.ndarray:
    """The clips of a step: every clip once an epoch, in an order that seed and epoch decide."""
    epoch, place = divmod(step * batch, length // batch * batch)
    return np.sort(np.random.default_rng([seed, epoch]).permutation(length)[place : place + batch])


def shape_of_rate(step: int, steps: int) -> float:
    """Linear up over the first tenth, then a half cosine down to nothing."""
    warm = 0.1 * steps
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + float(np.cos(np.pi * max(0.0, (step - warm) / (steps - warm)))))


def optimizers_of(model: nn.Module, rates: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else; for so small a model it saves most of the steps.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """
    inside = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and ".layer." in name}
    hidden = [p for p in model.parameters() if id(p) in inside]
    others = [p for p in model.parameters() if id(p) not in inside]
    found = [
        torch.optim.Muon(hidden, lr=rates[0], momentum=0.95, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in found:
        optimizer.param_groups[0]["peak"] = optimizer.param_groups[0]["lr"]
    return found


def advance(loss: Tensor, optimizers: list[torch.optim.Optimizer], model: nn.Module, share: float) -> None:
    """One step, at that share of the peak rates."""
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()


def batch(kind: str, seed: int, scale: str, frames: int, step: int) -> tuple[Tensor, Tensor]:
    """Clips and classes of a step, each clip mirrored and played backwards by chance, its class with it."""
    data, (mirrored, backwards) = split_of(kind, "train", scale), changed_classes(kind)
    indices = order(seed, step, SCALES[scale].batch, len(data))
    pixels_BT3HW, classes_B = data.clips(indices, frames), data.targets["classes"][indices]
    chance = np.random.default_rng([seed, step]).integers(2, size=(2, len(indices)))
    mirror_B, reverse_B = torch.from_numpy(chance).bool()
    pixels_BT3HW = torch.where(mirror_B.view(-1, 1, 1, 1, 1), pixels_BT3HW.flip(-1), pixels_BT3HW)
    classes_B = torch.where(mirror_B, mirrored[classes_B], classes_B)
    pixels_BT3HW = torch.where(reverse_B.view(-1, 1, 1, 1, 1), pixels_BT3HW.flip(1), pixels_BT3HW)
    classes_B = torch.where(reverse_B, backwards[classes_B], classes_B)
    return pixels_BT3HW.to(device()), classes_B.to(device())


def plain(seed: int, kind: str, scale: str, frames: int = 8) -> Any:
    """The plain model of a seed on the classes of a kind and on so many frames; trained once, going on if stopped."""
    of_frames = "" if frames == 8 else f"-{frames}-frames"
    size, done = SCALES[scale], CACHE / scale / f"plain-{kind}-{seed}{of_frames}.safetensors"
    if not done.exists():
        model = backbone(seed, kind, scale, frames)
        fit(model, kind, seed, scale, frames, size.steps[kind], size.rates, done.with_suffix(".pt"))
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, done)
        done.with_suffix(".pt").unlink(missing_ok=True)
    model = new_model(scale, len(CLASSES[kind]), frames)
    model.load_state_dict(load_file(done))
    # What is put in next is drawn from the seed.
    torch.manual_seed(seed)
    return model.to(device())


def fit(
    model: nn.Module, kind: str, seed: int, scale: str, frames: int, steps: int, rates: tuple[float, float],
    kept: Path | None = None,
) -> float:  # fmt: skip
    """Trains a model, plain or merged, on the classes of a kind, from what was kept; gives the seconds it took."""
    model.to(device()).train()
    optimizers, first = optimizers_of(model, rates), 0
    if kept is not None and kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        first = state["step"]
    torch.manual_seed(seed)
    started = time.perf_counter()
    for step in range(first, steps):
        pixels_BT3HW, classes_B = batch(kind, seed, scale, frames, step)
        with autocast():
            logits_BK = model(pixels_BT3HW).logits
        advance(cross_entropy(logits_BK.float(), classes_B), optimizers, model, shape_of_rate(step, steps))
        if kept is not None and (step + 1) % 250 == 0:
            save_state(kept, model, optimizers, step + 1)
            print(f"plain {kind} {seed}: {step + 1}/{steps}", flush=True)
    return time.perf_counter() - started


def save_state(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """What it takes to go on from here."""
    own = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(dict(model=model.state_dict(), optimizers=own, step=step), path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def tuning_rates(scale: str) -> tuple[float, float]:
    """Peaks while tuning, of Muon and of AdamW."""
    hidden, others = SCALES[scale].rates
    return TUNING_RATE * hidden, TUNING_RATE * others


def tune(model: nn.Module, kind: str, seed: int, scale: str, frames: int) -> float:
    """Tunes what was put into the plain model of a seed, or that model itself; gives the seconds it took."""
    return fit(model, kind, seed + TUNING_SEED, scale, frames, SCALES[scale].tuning[kind], tuning_rates(scale))


@torch.no_grad()
def answers(model: nn.Module, kind: str, name: str, scale: str, frames: int) -> np.ndarray:
    """Which clips of a split the model gets right: bool [B]."""
    data = split_of(kind, name, scale)
    model.to(device()).eval()
    right = []
    for start in range(0, len(data), 100):
        indices = np.arange(start, min(start + 100, len(data)))
        with autocast():
            logits_BK = model(data.clips(indices, frames).to(device())).logits
        right.append((logits_BK.argmax(-1).cpu() == data.targets["classes"][indices]).numpy())
    return np.concatenate(right)
