"""From the loader's pixels to class probabilities: one forward, one average over views, one batch loop.

Legend: B clips in a batch, V views of one video, n outputs of the model for a clip, K classes, T frames, C colours,
H height, W width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sttm.data.loader import Sample
from sttm.errors import SttmError, first_line

Average = Literal["probabilities", "logits"]

#: The error of a video whose scores are nan or infinite.
NOT_FINITE = "the model's scores for this clip are not finite; try --dtype fp32"


@dataclass(frozen=True)
class Classified:
    """What the model says of one video: probabilities, or the error that kept it from them."""

    sample: Sample
    """What the loader gave."""
    scores_K: Tensor | None
    """Class probabilities, averaged over views, on the CPU; None exactly where there is an error."""
    error: str | None
    seconds: float
    """Time to read the video, and its share of the model's time on its batch."""


# Over 40 lines: most are the options and what they mean.
def classify(
    model: nn.Module,
    samples: Iterable[Sample],
    *,
    views: tuple[int, int] = (1, 1),
    average: Average = "probabilities",
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    batches: int | None = None,
    filler_VTCHW: Tensor | None = None,
    advance: Callable[[int], None] = lambda videos: None,
) -> Iterator[Classified]:
    """Classify what the loader reads, batch by batch, and yield one result for each video, in order.

    Args:
        model: maps pixels [B, T, C, H, W] to an output with `.logits` [B, K]; it stays on its device.
        views: temporal views and spatial crops of each video, over which the scores are averaged.
        average: what is averaged over views: probabilities, or logits.
        batch_size: clips that go through the model at once; every view is a clip.
        dtype: torch.float32, or the type for autocast.
        batches: how many to run, for processes that must run a model equally often; left out, until nothing is left.
        filler_VTCHW: what the model gets in a batch without a readable video; left out, it does not run.
        advance: called after each batch with the number of its videos.

    Raises:
        SttmError: if a batch does not fit into the device's memory, or the model does not take such clips.
    """
    waiting = iter(samples)
    for _ in count() if batches is None else range(batches):
        batch = list(islice(waiting, videos_at_once(batch_size, views)))
        if batches is None and not batch:
            return
        readable = [sample.pixels_VTCHW for sample in batch if sample.pixels_VTCHW is not None]
        if not readable and filler_VTCHW is not None:
            readable = [filler_VTCHW]
        started = time.perf_counter()
        found = iter(scores(model, readable, average, batch_size, dtype))
        share = (time.perf_counter() - started) / max(1, len(readable))
        for sample in batch:
            yield _classified(sample, None if sample.pixels_VTCHW is None else next(found), share)
        advance(len(batch))


def scores(
    model: nn.Module, videos_VTCHW: Sequence[Tensor], average: Average, batch_size: int, dtype: torch.dtype
) -> list[Tensor]:
    """Return the class probabilities [K] of each video, averaged over its views, in fp32 on the CPU; see `classify`."""
    if not videos_VTCHW:
        return []
    with _explained(model, videos_VTCHW, batch_size):
        clips_BTCHW = torch.cat(list(videos_VTCHW))
        outputs_NK = torch.cat([forward(model, some, dtype).float().cpu() for some in clips_BTCHW.split(batch_size)])
    # [B*n K] -> [B n K]: a space-only TimeSformer answers for each frame (n = T), all others for the clip (n = 1)
    logits_BnK = outputs_NK.unflatten(0, (len(clips_BTCHW), -1))
    if average == "probabilities":
        logits_BnK = logits_BnK.softmax(-1)
    means = [video_VnK.flatten(0, 1).mean(0) for video_VnK in logits_BnK.split([len(v) for v in videos_VTCHW])]
    return means if average == "probabilities" else [mean_K.softmax(-1) for mean_K in means]


def forward(model: nn.Module, clips_BTCHW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the logits of some clips, on the model's device without gradients; a dtype other than fp32 is autocast."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits_BK: Tensor | None = getattr(model(clips_BTCHW.to(device)), "logits", None)
    if logits_BK is None:
        raise SttmError(f"a {type(model).__name__} has no head that classifies; give a model that has one")
    return logits_BK


def videos_at_once(batch_size: int, views: tuple[int, int]) -> int:
    """Return how many videos fill a batch with their views, at least one."""
    return max(1, batch_size // (views[0] * views[1]))


def labels_of(model: nn.Module) -> list[str]:
    """Return the names of a model's classes, by number."""
    inner: Any = getattr(model, "module", model)  # inside DDP
    id2label: dict[int, str] = inner.config.id2label
    return [id2label[index] for index in range(len(id2label))]


def reading_threads() -> int:
    """Return how many threads decode ahead of the model: this process's share of the cores less one, at least one.

    The model keeps all of its threads: whichever of the two is slower then finds the cores that the other leaves.
    """
    affinity: Any = getattr(os, "sched_getaffinity", None)  # what a container or taskset allows; not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _classified(sample: Sample, scores_K: Tensor | None, share: float) -> Classified:
    """Return the result of one video; `share` is its seconds of the model's time."""
    if scores_K is None:
        return Classified(sample, None, sample.error or "it was not read", sample.seconds)
    if not scores_K.isfinite().all():
        return Classified(sample, None, NOT_FINITE, sample.seconds + share)
    return Classified(sample, scores_K, None, sample.seconds + share)


@contextmanager
def memory_errors(what: str, device: torch.device) -> Iterator[None]:
    """Turn what torch raises when memory ends into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise SttmError(f"{what} do not fit into the memory of {device}; use a smaller batch size") from error
        raise


@contextmanager
def _explained(model: nn.Module, videos_VTCHW: Sequence[Tensor], batch_size: int) -> Iterator[None]:
    """Turn what torch and transformers raise for clips that do not fit into one sentence."""
    clips = min(batch_size, sum(len(views) for views in videos_VTCHW))
    try:
        with memory_errors(f"{clips} clips at once", next(model.parameters()).device):
            yield
    except SttmError:
        raise
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, videos_VTCHW[0].shape[1:]))
        what = f"the model does not take the clips of {shape} that its preprocessor makes ({first_line(error)})"
        raise SttmError(f"{what}; check that its config and its preprocessor config belong together") from error
