"""Synthetic videos drawn straight into memory: *motion* and *scene*, with what each clip shows.

The studies that put a method into a trained model (tune, offshelf, equal, ablation, gates) train on these; so do the
backbones that all fine-tuning starts from.

Legend: B clips, T frames, H x W a frame, 3 colours.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data import CACHE
from sttm.synth.clips import CLASSES, design, render
from sttm.synth.drawing import BACKDROPS, SHAPES, TEXTURES
from sttm.synth.motions import MOTION_CLASSES, MOTIONS

FRAMES = 16  # of a synthetic clip
SEEDS = {"pretrain": 200, "train": 201, "validation": 202, "test": 204}  # of the clips; never of a training
TRACKS = 11  # numbers that track_targets tells of a frame
NUM_NAMES = (len(SHAPES), len(TEXTURES), len(BACKDROPS))
#: What a mirror does to the tracks: x of the target, the pair and the passer, and the way that the target points.
MIRRORED_TRACKS = torch.tensor([-1, 1, -1, 1, -1, 1, 1, 1, 1, -1, 1])
MEAN, STD = 110, 60  # of the levels


@dataclass(frozen=True)
class SyntheticSet:
    """Clips of one split: pixels [B, T, H, W, 3] in 8 bits, and their classes (and what pre-training predicts)."""

    kind: str
    pixels: np.ndarray
    targets: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def classes(self) -> Tensor:
        return self.targets["classes"]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(CLASSES[self.kind])

    def clips(self, indices: np.ndarray, frames: int) -> Tensor:
        """Return normalised pixels [B, T, 3, H, W]."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels[indices, :: FRAMES // frames]))
        return (pixels.permute(0, 1, 4, 2, 3).float() - MEAN) / STD

    def batch(self, indices: np.ndarray, frames: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a training batch, each clip mirrored and played backwards by chance, its class changed with it."""
        mirrored, backwards = changed_classes(self.kind)
        pixels_BT3HW, classes_B = self.clips(indices, frames), self.classes[indices]
        mirror_B, reverse_B = torch.from_numpy(draw.integers(2, size=(2, len(indices)))).bool()
        pixels_BT3HW = torch.where(mirror_B.view(-1, 1, 1, 1, 1), pixels_BT3HW.flip(-1), pixels_BT3HW)
        classes_B = torch.where(mirror_B, mirrored[classes_B], classes_B)
        pixels_BT3HW = torch.where(reverse_B.view(-1, 1, 1, 1, 1), pixels_BT3HW.flip(1), pixels_BT3HW)
        return pixels_BT3HW, torch.where(reverse_B, backwards[classes_B], classes_B)


@cache
def synthetic_set(kind: str, split: str, edge: int, count: int, scale: str) -> SyntheticSet:
    """Return a split of *motion* or *scene*; draws it at the first call."""
    stem = CACHE / scale / f"{kind}-{split}"
    if not stem.with_suffix(".npz").exists():
        _draw(stem, kind, SEEDS[split], count, edge)
    kept = np.load(stem.with_suffix(".npz"))
    targets = {key: torch.from_numpy(kept[key]) for key in kept}
    return SyntheticSet(kind, np.load(stem.with_suffix(".npy"), mmap_mode="r"), targets)


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
    """Return what the tracking head predicts, from tracks in a picture 112 wide: [T, 11], around [-1, 1]."""
    target, two, passer = (np.array(tracks[name]) for name in ("target", "pair", "passer"))
    size = np.log(target[:, 2:3] / 14) * 2
    turn = np.stack([np.sin(target[:, 3]), np.cos(target[:, 3])], axis=1)
    # Which of the two is which cannot be seen: their middle and how far they are apart can.
    one, other = two[:, :2], two[:, 2:]
    apart = np.linalg.norm(one - other, axis=1, keepdims=True) / 28 - 1
    places = np.concatenate([target[:, :2], (one + other) / 2, passer[:, :2]], axis=1) / 56 - 1
    return np.concatenate([places, apart, size, turn, passer[:, 2:] * 2 - 1], axis=1).astype(np.float32)


@cache
def changed_classes(kind: str) -> tuple[Tensor, Tensor]:
    """Return what each class becomes when a clip is mirrored, and when it is played backwards."""
    if kind == "scene":
        same = torch.arange(len(CLASSES[kind]))
        return same, same
    swap = {"left": "right", "right": "left", "clockwise": "anticlockwise", "anticlockwise": "clockwise"}
    mirrored = [" ".join(swap.get(word, word) for word in label.split()) for label in MOTION_CLASSES]
    labels = {motion.template: motion.label for motion in MOTIONS}
    backwards = [labels[motion.backwards] for motion in MOTIONS]
    one, other = (torch.tensor([MOTION_CLASSES.index(label) for label in names]) for names in (mirrored, backwards))
    return one, other
