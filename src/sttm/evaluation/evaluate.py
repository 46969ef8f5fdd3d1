"""Evaluation of a model on a data set: views averaged, every video counted once, on one process or many.

Legend: V views of one video, K classes of the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sttm.data.datasets.labels import Classes
from sttm.data.datasets.video_set import VideoSet
from sttm.data.isolated import isolated
from sttm.data.loader import read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError
from sttm.evaluation.inference import Average, Classified, classify, labels_of, reading_threads, videos_at_once
from sttm.evaluation.metrics import Confusion
from sttm.evaluation.report import BEST, Answer, Evaluation


# Over 40 lines: most are the options and what they mean.
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
    isolate: bool = False,
    rank: int = 0,
    world: int = 1,
    advance: Callable[[int], None] = lambda videos: None,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Evaluation:
    """Evaluate a model, in eval mode and on its device, on a data set.

    A video that cannot be read, or whose scores are not finite, counts neither as right nor as wrong; its answer
    holds the error. With several processes each reads every `world`-th video and all return the whole result; all
    run the model equally often, so it may be sharded over them.

    Args:
        views, average, batch_size, dtype: as in `inference.classify`.
        workers: threads that decode ahead of the model; left out, `inference.reading_threads`.
        isolate: read the videos in processes of their own; see `sttm.data.isolated`.
        rank, world: this process, and how many there are, in torch.distributed.
        advance: called after each batch with the number of its videos.
        waiting: called about once a second while a video is waited for; what it raises ends the evaluation.

    Raises:
        SttmError: for a class that the model does not know, clips that it does not take, or too little memory.
    """
    started = time.perf_counter()
    labels = labels_of(model)
    numbers = match_classes(videos, labels)
    workers, own = workers or reading_threads(), videos.videos[rank::world]
    with (
        isolated(workers) if isolate else nullcontext() as read,
        closing(read_ahead(own, preprocess, views, workers, read, waiting)) as samples,
    ):
        batches = math.ceil(math.ceil(len(videos.videos) / world) / videos_at_once(batch_size, views))
        results = classify(
            model, samples, views=views, average=average, batch_size=batch_size, dtype=dtype, batches=batches,
            filler_VTCHW=_black(preprocess, views) if world > 1 else None, advance=advance,
        )  # fmt: skip
        answers = [_answer(result, rank + world * result.sample.index, numbers) for result in results]
    answers = _gathered(answers) if world > 1 else answers
    counted = [(answer.truth, answer.best) for answer in answers if answer.truth is not None and answer.best]
    confusion = Confusion.of(len(labels), [truth for truth, _ in counted], [best for _, best in counted])
    return Evaluation(tuple(labels), confusion, tuple(answers), videos.missing, time.perf_counter() - started)


def match_classes(videos: VideoSet, labels: list[str]) -> dict[int, int]:
    """Return the model's number of each class that has videos, by name or number; raise SttmError if it has none."""
    known = Classes.of(labels, "the model")
    used = sorted({video.label for video in videos.videos if video.label is not None})
    numbers = {number: known.index(videos.classes[number]) for number in used}
    unknown = [videos.classes[number] for number, own in numbers.items() if own is None]
    if unknown:
        more = f" nor {len(unknown) - 1} other{'s' * (len(unknown) > 2)} of the data" if unknown[1:] else ""
        raise SttmError(
            f"the model knows no class {unknown[0]!r}{more} among its {len(labels)} ({', '.join(labels[:3])}, ...): "
            "take a model that was trained on these classes, or name them with data.labels (--labels) as it does"
        )
    return {number: own for number, own in numbers.items() if own is not None}


def _answer(result: Classified, position: int, numbers: dict[int, int]) -> Answer:
    """Return the answer for the video at this position of the list."""
    sample, scores_K = result.sample, result.scores_K
    truth = None if sample.label is None else numbers[sample.label]
    answer = Answer(position, sample.path, truth, warnings=sample.warnings, error=result.error)
    if scores_K is None:
        return answer
    best = scores_K.topk(min(BEST, len(scores_K)))
    of_truth = None if truth is None else float(scores_K[truth])
    return replace(answer, best=tuple(best.indices.tolist()), scores=tuple(best.values.tolist()), of_truth=of_truth)


def _black(preprocess: Preprocess, views: tuple[int, int]) -> Tensor:
    """Return black views of one video, for a process that has no video left: a sharded model needs all processes."""
    height, width = preprocess.crop or (224, 224)
    frames_TCHW = torch.zeros((preprocess.sampling.num_frames, 3, height, width), dtype=torch.uint8)
    return preprocess(frames_TCHW, crops=views[1]).repeat(views[0], 1, 1, 1, 1)


def _gathered(answers: list[Answer]) -> list[Answer]:
    """Return the answers of all processes, in the order of the list."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, answers)
    return sorted((answer for part in parts for answer in part), key=lambda answer: answer.position)
