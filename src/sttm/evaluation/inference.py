"""What a model says of clips in memory: probabilities of the classes, averaged over each video's views.

Legend: B clips at once, V views of one video, n answers of the model for a clip, K classes, T frames, C colours,
H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sttm.errors import SttmError

Average = Literal["probabilities", "logits"]

#: What is said of a clip whose scores are nan or infinite.
NOT_FINITE = "the model's scores for this clip are not finite; try --dtype fp32"


def scores(
    model: nn.Module,
    videos_VTCHW: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    average: Average = "probabilities",
    batch_size: int = 8,
) -> list[Tensor]:
    """Class probabilities [K] of each video, on the CPU.

    Args:
        videos_VTCHW: the pixels of all views of each video.
        dtype: torch.float32, or the type for autocast.
        average: what is averaged over views: probabilities, or the logits that they are made from.
        batch_size: views that go through the model at once.

    Raises:
        SttmError: if the views do not fit into the device's memory, or the model does not take such clips.
    """
    if not videos_VTCHW:
        return []
    with _sentences(model, videos_VTCHW, batch_size):
        clips_BTCHW = torch.cat(list(videos_VTCHW))
        logits_BnK = torch.cat([_forward(model, some_BTCHW, dtype) for some_BTCHW in clips_BTCHW.split(batch_size)])
    if average == "probabilities":
        logits_BnK = logits_BnK.softmax(-1)
    means = [answers_VnK.flatten(0, 1).mean(0) for answers_VnK in logits_BnK.split([len(v) for v in videos_VTCHW])]
    return means if average == "probabilities" else [mean_K.softmax(-1) for mean_K in means]


def videos_at_once(batch_size: int, views: tuple[int, int]) -> int:
    """Videos whose views fill a batch of clips, at least one."""
    return max(1, batch_size // (views[0] * views[1]))


def labels_of(model: nn.Module) -> list[str]:
    """The names of a model's classes, by number."""
    inner: Any = getattr(model, "module", model)  # inside DDP
    id2label: dict[int, str] = inner.config.id2label
    return [id2label[index] for index in range(len(id2label))]


def reading_threads() -> int:
    """Threads that decode ahead of the model: one less than this process's share of the cores, at least one.

    The model keeps all of its threads: whichever of the two is slower then finds the cores that the other leaves.
    """
    affinity: Any = getattr(os, "sched_getaffinity", None)  # what a container or taskset allows; not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _forward(model: nn.Module, clips_BTCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits [B, n, K] of some clips, in fp32 on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits_BK = model(clips_BTCHW.to(device)).logits
    # [B*n K] -> [B n K]: a space-only TimeSformer answers for each frame (n = T), all others for the clip (n = 1)
    return logits_BK.float().unflatten(0, (len(clips_BTCHW), -1)).cpu()


@contextmanager
def _sentences(model: nn.Module, videos_VTCHW: Sequence[Tensor], batch_size: int) -> Iterator[None]:
    """Turns what torch and transformers raise for clips that do not fit into one sentence."""
    try:
        yield
    except SttmError:
        raise
    except torch.OutOfMemoryError as error:
        clips = min(batch_size, sum(len(views) for views in videos_VTCHW))
        many = f"{clips} clips at once do not fit into the memory of {next(model.parameters()).device}"
        raise SttmError(f"{many}; use a smaller --batch-size.") from error
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, videos_VTCHW[0].shape[1:]))
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = f"the model does not take the clips of {shape} that its preprocessor makes ({reason})"
        raise SttmError(f"{what}; check that its config and its preprocessor config belong together.") from error
