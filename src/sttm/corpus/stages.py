"""The two stages of a corpus: groups of videos to pixels, and pixels to rows. Ray Data runs each in a pool of actors.

A group is a batch of the model. Its videos are always the same ones, whoever reads them and in whatever order, so that
a run that was interrupted ends in the rows of an undisturbed one, to the bit on one machine.
"""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sttm import models
from sttm.config import parse_views
from sttm.corpus.features import Collector, check
from sttm.corpus.inputs import Inputs
from sttm.corpus.manifest import Settings
from sttm.corpus.tables import packed, table_of
from sttm.data.isolated import Limits, isolated
from sttm.data.loader import normalised
from sttm.data.transforms.preprocess import Preprocess
from sttm.devices import device_of, dtype_of
from sttm.errors import SttmError
from sttm.evaluation.inference import classify, labels_of, videos_at_once
from sttm.evaluation.predict import record_of

Row = dict[str, Any]


class Decode:
    """Read the videos of a group; an actor of the pool that decodes."""

    def __init__(self, folder: str, settings: Settings, seconds: float, gib: float) -> None:
        self.settings, self.inputs = settings, Inputs(Path(folder), settings.part)
        self.views = parse_views(settings.views)
        self.preprocess = Preprocess.from_folder(models.resolve(settings.model))
        self.reading = ExitStack()  # kept, or the process that reads would end at once; it ends with this one
        self.read = self.reading.enter_context(isolated(1, Limits(seconds, gib)))

    def __call__(self, row: Row) -> Row:
        """Return the samples of a group, their pixels as uint8."""
        first, last = span(row["group"], self.settings)
        videos = self.inputs.read(first, last)
        samples = [self.read(number, video, self.preprocess, self.views) for number, video in videos]
        return {"group": row["group"], "samples": pickle.dumps(samples)}


class Answer:
    """Bring a model to its compute, and make the rows of a group; an actor of the pool that answers."""

    def __init__(self, settings: Settings, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.settings, self.views = settings, parse_views(settings.views)
        self.dtype = dtype_of(settings.dtype)
        self.model, self.preprocess = models.load_with_preprocess(settings.model)
        plan = models.bring_to_compute(self.model.to(device_of(settings.device)), settings.compute, settings.method)
        self.compute = 1.0 if plan is None else plan.compute
        check(self.model, settings.features, self.views)
        self.labels, self.collector = labels_of(self.model), Collector(self.model, settings.features)

    def __call__(self, row: Row) -> Row:
        """Return the rows of a group, as a table of pyarrow in its stream format."""

        settings = self.settings
        samples = [normalised(sample, self.preprocess) for sample in pickle.loads(row["samples"])]
        with self.collector.collecting():
            options: dict[str, Any] = {"views": self.views, "batch_size": settings.batch_size, "dtype": self.dtype}
            results = list(classify(self.model, samples, **options))
        went = [sample.pixels_VTCHW is not None for sample in samples]
        features = self.collector.columns(sum(went))
        records = [record_of(result, self.labels, settings.top_k, self.compute) for result in results]
        numbers = [sample.index for sample in samples]
        return {"group": row["group"], "table": packed(table_of(numbers, records, features, went, settings))}


def group_size(settings: Settings) -> int:
    """Return how many videos are in a group: those that fill one batch of the model."""

    return videos_at_once(settings.batch_size, parse_views(settings.views))


def groups_of(part: int, settings: Settings) -> range:
    """Return the groups of a part, by number."""
    each = settings.part // group_size(settings)
    last = -(-settings.videos // group_size(settings))
    return range(part * each, min((part + 1) * each, last))


def span(group: int, settings: Settings) -> tuple[int, int]:
    """Return the number of the first video of a group, and of the first behind it."""
    size = group_size(settings)
    return group * size, min((group + 1) * size, settings.videos)


def check_sizes(part: int, batch_size: int, views: tuple[int, int]) -> None:
    """Raise SttmError where a part is not made of whole groups."""

    size = videos_at_once(batch_size, views)
    if part % size:
        down = max(size, part // size * size)
        raise SttmError(f"--part {part} is not a multiple of the {size} videos of one batch; give, say, {down}")
