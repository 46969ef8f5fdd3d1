"""Datasets of the studies: read once through the data layer of `sttm`, then kept as uint8 pixels.

Splits come from the annotations. Where these have no validation part, whole groups of the training part are held out
for it (a speaker's repetition, a sequence). Words are never mirrored, and no dataset is ever shuffled in time.

Legend: N clips, B clips in a batch, T frames, H x W a frame, 3 colours.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.provenance import ROOT
from sttm.config.sections import DataSettings, SplitSettings
from sttm.data.datasets.video_set import read_split
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.synth.videos import SynthSettings, make

CACHE = ROOT / "studies" / ".cache"
SPLITS = ("train", "validation", "test")
MAX_SHIFT = 2  # pixels by which a training clip is moved up or down, left or right

Annotation = Mapping[str, str]


def data_root() -> Path:
    """Return the folder of real clips: STTM_DATA, or ../shared/data beside the repository.

    Raises:
        SttmError: if it is not there.
    """
    folder = Path(os.environ.get("STTM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SttmError(f"the datasets of the studies are not at {folder}; set STTM_DATA to the folder that holds them")
    return folder


@dataclass(frozen=True)
class Dataset:
    """A set of labelled clips.

    Attributes:
        folder: in the data root, with an annotations.csv; None for synthetic videos, which are made.
        split_of: the split of an annotation, or None to leave the clip out.
        cached_frames: frames that are kept of each clip, spread over all of it. Training draws the model's frames
            from them, one out of each equal part; evaluation takes them at even distances.
        mirror: whether a mirrored clip keeps its class.
        still_removed: whether each clip's mean picture is subtracted, as is usual in lip reading: the face, the clothes
            and the light say nothing of the word, and hide it from a model that starts from new weights.
        middle: how much of a picture's height and width is kept, about its middle.
        by_channel: whether each colour has a mean and a deviation of its own, as is usual. With one mean for all, what
            is reddish throughout, as skin, becomes a large constant in every token, and hides all else.
        comparison: whether the set is there to compare how pictures are prepared, and stands in a table of its own.
        synthetic: what to make, where `folder` is None.
    """

    folder: str | None = None
    split_of: Callable[[Annotation], str | None] = field(default=lambda row: row["split"])
    cached_frames: int = 16
    mirror: bool = False
    still_removed: bool = False
    middle: float = 1.0
    by_channel: bool = False
    comparison: bool = False
    synthetic: SynthSettings | None = None


def _words(row: Annotation) -> str | None:
    return None if row["slot"] == "letter" else row["split"]


def _avletters(row: Annotation) -> str:
    held_out = row["repetition"] == "2" and row["speaker"] in ("Anya", "Yi")
    return "validation" if row["split"] == "train" and held_out else row["split"]


def _interactions(row: Annotation) -> str | None:
    """Crops of single persons are extra training clips of the same sequences; the tests are of whole scenes."""
    if row["label"] == "other":
        return None
    split = "validation" if row["split"] == "train" and row["sequence"] in ("7", "17") else row["split"]
    return split if split == "train" or row["view"] == "scene" else None


#: Clips made for a synthetic dataset; split 75 : 8 : 17.
_SHARES = dict(size=96, train=0.75, validation=0.08, test=0.17)
DATASETS: dict[str, Dataset] = {
    # As is usual in lip reading: the mouth cut out, at full resolution, and each colour standardised by itself.
    "grid_words_lips": Dataset("grid-words", _words, middle=0.5, by_channel=True),
    # One of the two, neither, and clips less their mean picture.
    "grid_words": Dataset("grid-words", _words, comparison=True),
    "grid_words_mouth": Dataset("grid-words", _words, middle=0.5, comparison=True),
    "grid_words_by_channel": Dataset("grid-words", _words, by_channel=True, comparison=True),
    "grid_words_moving": Dataset("grid-words", _words, still_removed=True, comparison=True),
    "grid_words_51": Dataset("grid-words"),
    "avletters": Dataset("avletters", _avletters, cached_frames=32),
    "avletters_moving": Dataset("avletters", _avletters, cached_frames=32, still_removed=True),
    "ut_interaction": Dataset("ut-interaction", _interactions, cached_frames=32, mirror=True),
    "motion": Dataset(synthetic=SynthSettings(kind="motion", clips=8_000, seed=11, **_SHARES)),
    "scene": Dataset(synthetic=SynthSettings(kind="scene", clips=8_000, seed=11, **_SHARES), mirror=True),
}


def dataset_named(name: str) -> Dataset:
    """Return the dataset of that name.

    Raises:
        SttmError: if there is none.
    """
    if name not in DATASETS:
        raise SttmError(f"unknown dataset {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def data_settings(name: str) -> DataSettings:
    """Return the `data` section of a training config for a dataset; writes its list, or makes its videos, if needed.

    Raises:
        SttmError: for an unknown dataset, or if the clips are not there.
    """
    dataset = dataset_named(name)
    if dataset.folder is None:
        assert dataset.synthetic is not None
        return synthetic_settings(name, dataset.synthetic)
    folder = data_root() / dataset.folder
    annotations = folder / "annotations.csv"
    if not annotations.exists():
        raise SttmError(f"{annotations} is not there, so {name} cannot be read; set STTM_DATA to the data folder")
    with annotations.open(newline="", encoding="utf-8") as file:
        rows = [(row["path"], row["label"], dataset.split_of(row)) for row in csv.DictReader(file)]
    listed = CACHE / "lists" / f"{name}.csv"
    _write(listed, [("path", "label", "split"), *(row for row in rows if row[2] is not None)])
    splits = {split: SplitSettings(list=listed, root=folder, split=split) for split in SPLITS}
    return DataSettings(**splits, max_missing=0, direction_sensitive=not dataset.mirror)


def _write(path: Path, rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    part.replace(path)


def synthetic_settings(name: str, wanted: SynthSettings) -> DataSettings:
    """Return the `data` section for synthetic videos; makes them, if needed."""
    folder = CACHE / "synthetic" / name
    if not (folder / "tracks.jsonl").exists():
        make(folder, wanted)
    files = ("kinetics_train.csv", "kinetics_val.csv", "kinetics_test.csv")
    if wanted.kind == "motion":
        files = ("train.json", "validation.json", "test-answers.csv")
    splits: dict[str, Any] = {
        split: SplitSettings(list=folder / file) for split, file in zip(SPLITS, files, strict=True)
    }
    labels = folder / "labels.json" if wanted.kind == "motion" else None
    return DataSettings(**splits, root=folder / "videos", labels=labels)


@dataclass(frozen=True)
class ClipSet:
    """The clips of one split in memory: pixels [N, T, 3, H, W] in 8 bits, and their classes [N].

    `mean` and `std` have one number [1 1 1], or one for each colour [3 1 1].
    """

    pixels: np.ndarray
    classes: Tensor
    names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    mirror: bool = False
    still_removed: bool = False

    def __len__(self) -> int:
        return len(self.classes)

    def head(self, count: int) -> ClipSet:
        """Return the first clips only, for trials."""
        return replace(self, pixels=self.pixels[:count], classes=self.classes[:count])

    def clips(self, indices: np.ndarray, frames: int, draw: np.random.Generator | None = None) -> Tensor:
        """Return normalised pixels [B, T, 3, H, W]; with `draw` one frame at random out of each of T equal parts.

        Raises:
            SttmError: for more frames than are kept of a clip.
        """
        kept = self.pixels.shape[1]
        if frames > kept:
            raise SttmError(f"{kept} frames of each clip are kept and {frames} asked for; give at most {kept}")
        size = (len(indices), frames)
        offset_BT = np.full(size, 0.5) if draw is None else draw.random(size)
        pick_BT = ((np.arange(frames) + offset_BT) * kept / frames).astype(int)
        pixels = torch.from_numpy(self.pixels[indices[:, None], pick_BT])
        mean = pixels.float().mean(1, keepdim=True) if self.still_removed else self.mean
        return (pixels.float() - mean) / self.std

    def batch(self, indices: np.ndarray, frames: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a training batch: clips shifted by up to MAX_SHIFT pixels, and mirrored where that is allowed."""
        pixels_BT3HW = self.clips(indices, frames, draw)
        shifts = draw.integers(-MAX_SHIFT, MAX_SHIFT + 1, size=(len(indices), 2)).tolist()
        mirrored = draw.integers(2, size=len(indices)) * self.mirror
        for number, (shift, mirror) in enumerate(zip(shifts, mirrored, strict=True)):
            clip_T3HW = pixels_BT3HW[number].roll(shift, (-2, -1))
            pixels_BT3HW[number] = clip_T3HW.flip(-1) if mirror else clip_T3HW
        return pixels_BT3HW, self.classes[torch.from_numpy(indices)]


@cache
def clip_set(name: str, split: str, edge: int) -> ClipSet:
    """Return one split of a dataset as squares of `edge` pixels; decodes it at the first call.

    Raises:
        SttmError: for an unknown dataset, or if a clip is missing or cannot be read.
    """
    stem, dataset = _decoded(name, split, edge), dataset_named(name)
    kept, train = np.load(stem.with_suffix(".npz")), np.load(_decoded(name, "train", edge).with_suffix(".npz"))
    keys = ("means", "stds") if dataset.by_channel else ("mean", "moving" if dataset.still_removed else "std")
    mean, std = (torch.from_numpy(train[key]).float().view(-1, 1, 1) for key in keys)
    return ClipSet(
        np.load(stem.with_suffix(".npy"), mmap_mode="r"),
        torch.from_numpy(kept["classes"]),
        tuple(kept["names"].tolist()),
        mean,
        std,
        dataset.mirror,
        dataset.still_removed,
    )


def _decoded(name: str, split: str, edge: int) -> Path:
    """Return where the pixels, the classes, and the mean and deviation of one split are kept."""
    stem = CACHE / "decoded" / f"{name}-{edge}" / split
    if stem.with_suffix(".npz").exists():
        return stem
    dataset = dataset_named(name)
    videos, frames = read_split(data_settings(name), split), dataset.cached_frames  # type: ignore[arg-type]
    preprocess = square(edge, frames, dataset.middle)
    stem.parent.mkdir(parents=True, exist_ok=True)
    part = stem.with_suffix(f".{os.getpid()}.part")
    pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (len(videos.videos), frames, 3, edge, edge))
    for number, video in enumerate(videos.videos):
        (clip,) = video.read(preprocess.sampling)
        pixels[number] = preprocess.resize_and_crop(clip.frames_TCHW)[0].numpy()
    pixels.flush()
    sample = pixels[:: max(1, len(pixels) // 500)]
    classes, names = np.array([video.label for video in videos.videos]), np.array(videos.classes)
    part.replace(stem.with_suffix(".npy"))
    moving = (sample - sample.mean(1, keepdims=True)).std()
    told = dict(classes=classes, names=names, mean=sample.mean(), std=sample.std(), moving=moving)
    told |= dict(means=sample.mean((0, 1, 3, 4)), stds=sample.std((0, 1, 3, 4)))
    np.savez(stem.with_suffix(".npz"), **told)
    return stem


def resized_edge(edge: int, middle: float) -> int:
    """Return the shorter side of pictures, of which the crop of `edge` pixels then keeps that much."""
    return round(edge / middle)


def square(edge: int, frames: int, middle: float = 1.0) -> Preprocess:
    """Return the preprocessing of a VideoMAE of that size: `middle` of the shorter side to `edge`, centre crop."""
    return Preprocess(
        processor="VideoMAE", sampling=Sampling(frames), resize=resized_edge(edge, middle), crop=(edge, edge),
        rescale_factor=1 / 255, offset=0.0, mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
