"""Clips for training and for evaluation, decoded ahead of the model.

All that is random in training is a function of the seed and of a clip's position in one endless stream of videos, an
epoch after the other, so that neither the number of workers nor the step at which one starts changes a pixel.

Legend: B clips, V views of one video, T frames, C colours, H height, W width, K classes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sttm.config.settings import Settings
from sttm.data.transforms.augment import Augment
from sttm.data.transforms.mixup import mix_pairs
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.cache import Kept
from sttm.data.video.read import Clip, Sampling
from sttm.data.workers import load_in_order
from sttm.errors import SttmError

if TYPE_CHECKING:
    from sttm.data.datasets.video_set import Video, VideoSet

READ_AHEAD_BYTES = 2**30  # for pixels of evaluation that wait for the model
ORDER, FRAMES, VIEW, MIX = range(4)  # what a draw is for


Place = tuple[int, int]  # position in the stream, number of the video
Result = TypeVar("Result")


@dataclass
class Batch:
    """One micro-batch of training clips, on the CPU."""

    pixels_BTCHW: Tensor
    targets_BK: Tensor
    """Shares of the classes: one-hot, or mixed."""
    weight_B: Tensor
    """1, or 0 for an unreadable video, whose pixels are zeros."""
    files: list[str]
    """What each clip was read from."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """Each unreadable video, with the reason."""


@dataclass(frozen=True)
class Reading:
    """What reading one video came to: pixels, or an error."""

    index: int
    path: str
    label: int | None
    pixels_VTCHW: Tensor | None
    warnings: tuple[str, ...]
    error: str | None
    seconds: float
    frames_decoded: int
    """Different frames of the file in all views."""


class Readable(Protocol):
    """One thing to read: a video of a data set, or a file named on the command line."""

    @property
    def path(self) -> str: ...

    @property
    def label(self) -> int | None: ...

    def read(self, sampling: Sampling, /) -> list[Clip]: ...


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
) -> Generator[list[Batch]]:
    """Return, for each step from `first_step` to before `last_step`, the micro-batches of this process.

    An epoch shows each video once, in an order of its own; a step that reaches beyond its end goes on with the next.
    Close the generator, or exhaust it, to end its worker processes.

    Raises:
        SttmError: if the sizes do not divide, a video has no label, or a worker dies.
    """
    plan = _Plan(videos, settings, first_step, last_step, rank, world, micro_batch)
    return _steps(load_in_order(_MicroBatches(videos, preprocess, settings), plan, workers), plan)


def _steps(loaded: Generator[Batch], plan: _Plan) -> Generator[list[Batch]]:
    with closing(loaded):
        for _ in plan.steps:
            yield list(islice(loaded, plan.accumulation))


def read_ahead(
    videos: Iterable[Readable], preprocess: Preprocess, views: tuple[int, int], workers: int
) -> Generator[Reading]:
    """Yield every video in order, temporal views times spatial crops of each, decoded ahead by threads.

    PyAV and Pillow release the interpreter, so threads decode as fast as processes would, start at once and hand
    the pixels over without a copy.
    """
    height, width = preprocess.crop or (224, 224)
    num_bytes = 4 * 3 * height * width * preprocess.sampling.num_frames * views[0] * views[1]
    ahead = max(workers + 1, min(32, READ_AHEAD_BYTES // num_bytes))
    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="sttm-read")
    to_do, under_way = iter(enumerate(videos)), deque[Future[Reading]]()
    try:
        under_way.extend(pool.submit(_read_views, *item, preprocess, views) for item in islice(to_do, ahead))
        while under_way:
            reading = under_way.popleft().result()
            under_way.extend(pool.submit(_read_views, *item, preprocess, views) for item in islice(to_do, 1))
            yield reading
    finally:  # reached as well when the taker stops early
        pool.shutdown(cancel_futures=True)


def _read_views(index: int, video: Readable, preprocess: Preprocess, views: tuple[int, int]) -> Reading:
    """Decode and preprocess one video; whatever goes wrong becomes its error."""
    started = time.perf_counter()
    sampling = replace(preprocess.sampling, views=views[0])
    clips, error = _attempt(lambda: video.read(sampling))
    pixels_VTCHW = None
    if clips is not None:
        pixels_VTCHW, error = _attempt(lambda: torch.cat([preprocess(clip.frames_TCHW, views[1]) for clip in clips]))
    notes = tuple(dict.fromkeys(warning for clip in clips or () for warning in clip.warnings))
    frames = {frame for clip in clips or () for frame in clip.indices}
    seconds = time.perf_counter() - started
    return Reading(index, video.path, video.label, pixels_VTCHW, notes, error, seconds, len(frames))


def _attempt(read: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """A result, or the reason why there is none: one bad video costs itself only."""
    try:
        return read(), None
    except SttmError as error:
        return None, str(error)
    except Exception as defect:  # of ours or of a codec: it is told
        return None, f"reading it failed unexpectedly: {type(defect).__name__}: {defect}"


class _Plan:
    """Which videos make up each micro-batch of one process."""

    def __init__(
        self,
        videos: VideoSet,
        settings: Settings,
        first_step: int,
        last_step: int,
        rank: int,
        world: int,
        micro_batch: int,
    ) -> None:
        batch_size, repeats = settings.optimizer.batch_size, settings.augment.repeats
        if batch_size % (world * micro_batch):
            raise SttmError(
                f"optimizer.batch_size={batch_size} cannot be shared among {world} processes in micro-batches of "
                f"{micro_batch}; make it a multiple of {world * micro_batch}."
            )
        if micro_batch % repeats:
            raise SttmError(
                f"optimizer.micro_batch={micro_batch} is not a multiple of augment.repeats={repeats}, so that the "
                "clips of a video would be torn apart; make it one."
            )
        if settings.augment.mixes and micro_batch // repeats % 2:
            raise SttmError(
                f"A micro-batch holds {micro_batch // repeats} different videos, but mixup and cutmix take them in "
                "pairs; give an even optimizer.micro_batch (over augment.repeats), or mixup: 0 and cutmix: 0."
            )
        self.num_videos, self.seed = len(videos.videos), settings.run.seed
        self.per_step, self.length = batch_size // repeats, micro_batch // repeats
        self.accumulation = batch_size // (world * micro_batch)
        self.steps, self.rank, self.world = range(first_step, last_step), rank, world

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, order = -1, np.arange(0)
        for step in self.steps:
            for m in range(self.accumulation):
                start = step * self.per_step + (m * self.world + self.rank) * self.length
                places = []
                for position in range(start, start + self.length):
                    if position // self.num_videos != epoch:
                        epoch = position // self.num_videos
                        order = _generator(self.seed, ORDER, epoch).permutation(self.num_videos)
                    places.append((position, int(order[position % self.num_videos])))
                yield places


class _MicroBatches:
    """Makes the micro-batch of a list of places; lives in each worker."""

    def __init__(self, videos: VideoSet, preprocess: Preprocess, settings: Settings) -> None:
        if not videos.videos:
            raise SttmError("There is no video to train on; check data.train.")
        unlabelled = next((video for video in videos.videos if video.label is None), None)
        if unlabelled is not None:
            raise SttmError(
                f"{unlabelled.path} has no label, so nothing can be learnt from it; give a list with labels."
            )
        self.videos, self.classes, self.seed = videos.videos, len(videos.classes), settings.run.seed
        self.settings = settings.augment
        self.sampling = replace(preprocess.sampling, views=1)
        self.augment = Augment(settings.augment, preprocess, mirror=not videos.direction_sensitive)
        self.kept = Kept(settings.data.cache_gib * 2**30) if settings.data.cache_gib else None

    def __getitem__(self, places: list[Place]) -> Batch:
        repeats, length = self.settings.repeats, len(places)
        shape = (repeats * length, self.sampling.num_frames, 3, *self.augment.size)
        batch = Batch(
            pixels_BTCHW=torch.zeros(shape),
            targets_BK=torch.zeros(len(places) * repeats, self.classes),
            weight_B=torch.ones(len(places) * repeats),
            files=[self.videos[number].path for _, number in places] * repeats,
        )
        for i, (position, number) in enumerate(places):
            video, every = self.videos[number], slice(i, None, length)
            assert video.label is not None
            batch.targets_BK[every, video.label] = 1
            pixels, error = _attempt(lambda: self._clips(video, position))  # noqa: B023 - called at once
            if pixels is None:
                batch.weight_B[every] = 0
                batch.errors.append((video.path, str(error)))
            else:
                batch.pixels_BTCHW[every] = torch.stack(pixels)
        if self.settings.mixes:
            pairs = [(position, r) for r in range(repeats) for position, _ in places[::2]]
            draws = [_generator(self.seed, MIX, *pair) for pair in pairs]
            mix_pairs(batch.pixels_BTCHW, batch.targets_BK, batch.weight_B, draws, self.settings)
        return batch

    def _clips(self, video: Video, position: int) -> list[Tensor]:
        """Decode a video once and vary it as often as wanted."""
        (clip,) = video.read(self.sampling, _generator(self.seed, FRAMES, position), kept=self.kept)
        draws = [_generator(self.seed, VIEW, position, r) for r in range(self.settings.repeats)]
        return [self.augment(clip.frames_TCHW, draw) for draw in draws]


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)
