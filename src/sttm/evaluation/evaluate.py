"""Testing a model on a list of videos: views averaged, every video counted once, on one process or many.

Legend: V views of one video, K classes of the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sttm.data.datasets.labels import Classes
from sttm.data.datasets.video_set import VideoSet
from sttm.data.loader import Sample, read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError
from sttm.evaluation.inference import NOT_FINITE, Average, labels_of, reading_threads, scores, videos_at_once
from sttm.evaluation.metrics import Confusion
from sttm.evaluation.report import BEST, Answer, Evaluation

__all__ = ["Evaluation", "evaluate", "match_classes"]


def evaluate(
    model: nn.Module,
    videos: VideoSet,
    preprocess: Preprocess,
    *,
    views: tuple[int, int] = (1, 1),
    average: Average = "probabilities",
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    advance: Callable[[int], None] = lambda videos: None,
) -> Evaluation:
    """Test a model, in eval mode and on its device, on a list of videos.

    A video that cannot be read, or whose scores are not finite, is an error of that video and counts neither as
    right nor as wrong. With several processes each reads every `world`-th video and all get the whole result; all
    run the model equally often, so it may be sharded over them.

    Args:
        views: temporal views and spatial crops of each video, over which the scores are averaged.
        average: what is averaged: the views' probabilities, or their logits.
        batch_size: views that go through the model at once.
        dtype: torch.float32, or the type for autocast.
        workers: threads that decode ahead of the model; left out, `scoring.reading_threads`.
        rank, world: this process, and how many there are, in torch.distributed.
        advance: gets the number of videos that this process is through with, batch after batch.

    Raises:
        SttmError: for a class that the model does not know, clips that it does not take, or too little memory.
    """
    started = time.perf_counter()
    labels = labels_of(model)
    numbers = match_classes(videos, labels)
    readings = read_ahead(videos.videos[rank::world], preprocess, views, workers or reading_threads())
    rounds = math.ceil(math.ceil(len(videos.videos) / world) / videos_at_once(batch_size, views))
    answers: list[Answer] = []
    with closing(readings):
        for _ in range(rounds):
            batch = list(islice(readings, videos_at_once(batch_size, views)))
            pixels_VTCHW = [reading.pixels_VTCHW for reading in batch if reading.pixels_VTCHW is not None]
            if world > 1 and not pixels_VTCHW:
                pixels_VTCHW = [_black(preprocess, views)]
            found = iter(scores(model, pixels_VTCHW, dtype=dtype, average=average, batch_size=batch_size))
            for reading in batch:
                scores_K = None if reading.pixels_VTCHW is None else next(found)
                answers.append(_answer(replace(reading, index=rank + world * reading.index), scores_K, numbers))
            advance(len(batch))
    answers = _gathered(answers) if world > 1 else answers
    counted = [(answer.truth, answer.best) for answer in answers if answer.truth is not None and answer.best]
    confusion = Confusion.of(len(labels), [truth for truth, _ in counted], [best for _, best in counted])
    return Evaluation(tuple(labels), confusion, tuple(answers), videos.missing, time.perf_counter() - started)


def match_classes(videos: VideoSet, labels: list[str]) -> dict[int, int]:
    """The model's number of each class that has videos, by name, or by number where the data have no names.

    Raises:
        SttmError: if the model does not know one of them.
    """
    known = Classes.of(labels, "the model")
    used = sorted({video.label for video in videos.videos if video.label is not None})
    numbers = {number: known.index(videos.classes[number]) for number in used}
    strangers = [videos.classes[number] for number, own in numbers.items() if own is None]
    if strangers:
        more = f" nor {len(strangers) - 1} other{'s' * (len(strangers) > 2)} of the data" if strangers[1:] else ""
        raise SttmError(
            f"the model knows no class {strangers[0]!r}{more} among its {len(labels)} ({', '.join(labels[:3])}, ...): "
            "take a model that was trained on these classes, or name them with data.labels (--labels) as it does"
        )
    return {number: own for number, own in numbers.items() if own is not None}


def _answer(reading: Sample, scores_K: Tensor | None, numbers: dict[int, int]) -> Answer:
    truth = None if reading.label is None else numbers[reading.label]
    answer = Answer(reading.index, reading.path, truth, warnings=reading.warnings, error=reading.error)
    if scores_K is None:
        return answer
    if not scores_K.isfinite().all():
        return replace(answer, error=NOT_FINITE)
    best = scores_K.topk(min(BEST, len(scores_K)))
    return replace(answer, best=tuple(best.indices.tolist()), scores=tuple(best.values.tolist()))


def _black(preprocess: Preprocess, views: tuple[int, int]) -> Tensor:
    """A video's worth of black views, for a process that has none: a sharded model needs all processes."""
    height, width = preprocess.crop or (224, 224)
    frames_TCHW = torch.zeros((preprocess.sampling.num_frames, 3, height, width), dtype=torch.uint8)
    return preprocess(frames_TCHW, crops=views[1]).repeat(views[0], 1, 1, 1, 1)


def _gathered(answers: list[Answer]) -> list[Answer]:
    """The answers of all processes, in the order of the list."""
    import torch.distributed as dist

    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, answers)
    return sorted((answer for some in everyones for answer in some), key=lambda answer: answer.place)
