"""Clips for training and for evaluation, decoded ahead of the model.

Evaluation: `read_ahead` yields one Sample a video, decoded and preprocessed by threads. Training: `training_batches`
yields the micro-batches of each step, made by worker processes. All randomness of training is a function of the seed
and of a clip's position in one endless stream of videos, an epoch after the other, so that neither the number of
workers nor the step at which one starts changes a pixel.

Legend: B clips, V views of one video, T frames, C colours, H height, W width, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sttm.config.settings import Settings
from sttm.data.datasets.video_set import VideoSet
from sttm.data.threads import map_ahead
from sttm.data.transforms.augment import Augment
from sttm.data.transforms.mixup import mixup_pairs
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.cache import VideoCache
from sttm.data.video.video import Video, attempt
from sttm.data.workers import load_in_order
from sttm.errors import SttmError

READ_AHEAD_BYTES = 2**30  # for pixels of evaluation that wait for the model
ORDER, FRAMES, AUGMENT, MIXUP = range(4)  # what a random generator is for

StreamItem = tuple[int, int]  # position in the stream, index of the video
Read = Callable[[int, Video, Preprocess, tuple[int, int]], "Sample"]
"""Decodes and crops one video, as `read_crops` does: index, video, preprocessing, views."""


@dataclass(frozen=True)
class Sample:
    """One video read for evaluation: its pixels, or the error."""

    index: int
    path: str
    label: int | None
    pixels_VTCHW: Tensor | None
    warnings: tuple[str, ...]
    error: str | None
    seconds: float
    frames_decoded: int
    """Different frames of the file in all views."""


@dataclass
class Batch:
    """One micro-batch of training clips, on the CPU."""

    pixels_BTCHW: Tensor
    targets_BK: Tensor
    """Probabilities of the classes: one-hot, or mixed; K = 0 without labels."""
    weight_B: Tensor
    """1, or 0 for an unreadable video, whose pixels are zeros."""
    files: list[str]
    """What each clip was read from."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """Each unreadable video, with the reason."""


# --- Evaluation ---------------------------------------------------------------------------------------------


def read_ahead(
    videos: Iterable[Video],
    preprocess: Preprocess,
    views: tuple[int, int],
    workers: int,
    read: Read | None = None,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Generator[Sample]:
    """Yield a Sample of every video in order, with these temporal views and spatial crops, decoded ahead by threads.

    PyAV and Pillow release the GIL, so threads decode as fast as processes would, start at once and hand the pixels
    over without a copy. Closing the generator ends the threads.

    Args:
        read: decodes and crops one video; left out, `read_crops`, in these threads.
        waiting: called while a video is waited for, as `map_ahead` says.
    """
    height, width = preprocess.crop or (224, 224)
    num_bytes = 4 * 3 * height * width * preprocess.sampling.num_frames * views[0] * views[1]
    ahead = max(workers + 1, min(32, READ_AHEAD_BYTES // num_bytes))
    read = read or read_crops

    def load(item: tuple[int, Video]) -> Sample:
        return normalised(read(*item, preprocess, views), preprocess)

    yield from map_ahead(
        load, enumerate(videos), max(workers, 1), ahead=ahead, waiting=waiting, name=lambda item: item[1].path
    )


def read_crops(index: int, video: Video, preprocess: Preprocess, views: tuple[int, int]) -> Sample:
    """Decode and crop one video: a Sample whose pixels are uint8 still; whatever goes wrong becomes its error."""
    started = time.perf_counter()
    sampling = replace(preprocess.sampling, views=views[0])

    def crops_of(frame_CHW: Tensor) -> Tensor:
        return preprocess.resize_and_crop(frame_CHW[None], views[1])[:, 0]

    clips, error = attempt(lambda: video.read(sampling, prepare=crops_of))
    pixels_VTCHW = None if clips is None else torch.stack([clip.frames_TCHW for clip in clips])
    warnings = tuple(dict.fromkeys(warning for clip in clips or () for warning in clip.warnings))
    frames = {frame for clip in clips or () for frame in clip.indices}
    seconds = time.perf_counter() - started
    return Sample(index, video.path, video.label, pixels_VTCHW, warnings, error, seconds, len(frames))


def normalised(sample: Sample, preprocess: Preprocess) -> Sample:
    """Return a sample of `read_crops` with the pixels that the model takes, in float32."""
    if sample.pixels_VTCHW is None:
        return sample
    started = time.perf_counter()
    pixels_VTCHW = torch.stack([preprocess.normalise(view_TCHW) for view_TCHW in sample.pixels_VTCHW])
    return replace(sample, pixels_VTCHW=pixels_VTCHW, seconds=sample.seconds + time.perf_counter() - started)


# --- Training -----------------------------------------------------------------------------------------------


def training_batches(
    videos: VideoSet,
    preprocess: Preprocess,
    settings: Settings,
    *,
    first_step: int,
    last_step: int,
    rank: int,
    world: int,
    micro_batch: int,
    workers: int,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Generator[list[Batch]]:
    """Return, for each step from `first_step` to before `last_step`, the micro-batches of this process.

    An epoch shows each video once, in an order of its own; a step that reaches beyond its end goes on with the next.
    Close the generator, or exhaust it, to end its worker processes.

    Args:
        rank, world: number of this process, and of all processes.
        micro_batch: clips that go through the model at once.
        workers: processes that decode; 0 decodes in this one.
        waiting: called while a batch is waited for (see `load_in_order`).

    Raises:
        SttmError: if the sizes do not divide, a video has no label, or a worker dies.
    """
    sampler = _BatchSampler(len(videos.videos), settings, range(first_step, last_step), rank, world, micro_batch)
    return _steps(load_in_order(_TrainingClips(videos, preprocess, settings), sampler, workers, waiting), sampler)


def _steps(batches: Generator[Batch], sampler: _BatchSampler) -> Generator[list[Batch]]:
    with closing(batches):
        for _ in sampler.steps:
            yield list(islice(batches, sampler.accumulation))


class _BatchSampler(Sampler[list[StreamItem]]):
    """The videos of each micro-batch of one process."""

    def __init__(
        self, num_videos: int, settings: Settings, steps: range, rank: int, world: int, micro_batch: int
    ) -> None:
        batch_size, repeats = settings.optimizer.batch_size, settings.augment.repeats
        if batch_size % (world * micro_batch):
            parts = f"{world} processes in micro-batches of {micro_batch}; make it a multiple of {world * micro_batch}"
            raise SttmError(f"optimizer.batch_size={batch_size} cannot be divided among {parts}")
        if micro_batch % repeats:
            raise SttmError(
                f"optimizer.micro_batch={micro_batch} is not a multiple of augment.repeats={repeats}, so that the "
                "clips of one video would be in different micro-batches; make it a multiple"
            )
        if settings.augment.mixes and micro_batch // repeats % 2:
            raise SttmError(
                f"a micro-batch holds {micro_batch // repeats} different videos, but mixup and cutmix take them in "
                "pairs; give an even optimizer.micro_batch (over augment.repeats), or mixup: 0 and cutmix: 0"
            )
        self.num_videos, self.seed = num_videos, settings.run.seed
        self.per_step, self.length = batch_size // repeats, micro_batch // repeats
        self.accumulation = batch_size // (world * micro_batch)
        self.steps, self.rank, self.world = steps, rank, world

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[StreamItem]]:
        epoch, order = -1, np.arange(0)
        for step in self.steps:
            for m in range(self.accumulation):
                start = step * self.per_step + (m * self.world + self.rank) * self.length
                items = []
                for position in range(start, start + self.length):
                    if position // self.num_videos != epoch:
                        epoch = position // self.num_videos
                        order = _rng(self.seed, ORDER, epoch).permutation(self.num_videos)
                    items.append((position, int(order[position % self.num_videos])))
                yield items


class _TrainingClips(Dataset[Batch]):
    """The micro-batch of each list of stream items; every worker has a copy."""

    def __init__(self, videos: VideoSet, preprocess: Preprocess, settings: Settings) -> None:
        if not videos.videos:
            raise SttmError("there is no video to train on; check data.train")
        unlabelled = next((video for video in videos.videos if video.label is None), None)
        if unlabelled is not None and not settings.data.unlabelled:
            raise SttmError(f"{unlabelled.path} has no label, which training needs; give a list with labels")
        self.videos, self.classes, self.seed = videos.videos, len(videos.classes), settings.run.seed
        self.settings = settings.augment
        self.sampling = replace(preprocess.sampling, views=1)
        self.augment = Augment(settings.augment, preprocess, may_flip=not videos.direction_sensitive)
        self.cache = VideoCache(settings.data.cache_gib * 2**30) if settings.data.cache_gib else None

    def __getitem__(self, items: list[StreamItem]) -> Batch:
        """Decode, augment and collate: the clips of one video are `len(items)` apart."""
        repeats, length = self.settings.repeats, len(items)
        shape = (repeats * length, self.sampling.num_frames, 3, *self.augment.size)
        batch = Batch(
            pixels_BTCHW=torch.zeros(shape),
            targets_BK=torch.zeros(length * repeats, self.classes),
            weight_B=torch.ones(length * repeats),
            files=[self.videos[index].path for _, index in items] * repeats,
        )
        for i, (position, index) in enumerate(items):
            video, clips_of_video = self.videos[index], slice(i, None, length)
            if video.label is not None:
                batch.targets_BK[clips_of_video, video.label] = 1
            pixels, error = attempt(lambda: self._clips(video, position))  # noqa: B023 - called at once
            if pixels is None:
                batch.weight_B[clips_of_video] = 0
                batch.errors.append((video.path, str(error)))
            else:
                batch.pixels_BTCHW[clips_of_video] = torch.stack(pixels)
        if self.settings.mixes:
            pairs = [(position, r) for r in range(repeats) for position, _ in items[::2]]
            rngs = [_rng(self.seed, MIXUP, *pair) for pair in pairs]
            mixup_pairs(batch.pixels_BTCHW, batch.targets_BK, batch.weight_B, rngs, self.settings)
        return batch

    def _clips(self, video: Video, position: int) -> list[Tensor]:
        """Decode a video once, and augment it once a repeat."""
        rngs = [_rng(self.seed, AUGMENT, position, r) for r in range(self.settings.repeats)]
        frames, crops_of = _rng(self.seed, FRAMES, position), self.augment.crops(rngs)
        clips = video.read(self.sampling, frames, cache=self.cache, prepare=crops_of)
        return [self.augment.finish(clip.frames_TCHW, rng) for clip, rng in zip(clips, rngs, strict=True)]


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)
