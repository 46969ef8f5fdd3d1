"""Choose the plan of one checkpoint: of many schedules, the one whose answers agree best with those of the plain model.

Labels are not needed: the plain model says what is right. Its logits are computed once; candidates are compared on few
clips first, and only the best of them on more (successive halving). The same clips give the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.backbones.base import Backbone
from sttm.calibration.search import Calibration, Search
from sttm.errors import SttmError
from sttm.merging import spec_of
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.patching.schedule import check_compute

#: Candidates that are compared at most.
LIMIT = 40


# Over 40 lines: most are the options and what they mean.
def calibrate(
    model: nn.Module,
    clips: Tensor,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    *,
    limit: int = LIMIT,
    batch_size: int = 8,
) -> Plan:
    """Merge a model, in place, by the plan that agrees best with the plain model on some unlabelled clips.

    The plan chooses the layers, the window, how the reduction is split over the mergers, and what the selector
    measures. Plans are compared by the distance of the logits from the plain model's. The plan that `sttm.apply` would
    make is among the candidates, and stays unless another one is better by more than the standard error.

    Args:
        model: as in `sttm.apply`, and plain.
        clips: pixels of some 32 clips as the model takes them, [clips, frames, channels, height, width].
        compute: share of the plain model's multiply-adds to spend; every candidate meets it as in `sttm.apply`.
        method: "sttm", or the name of a baseline that needs no training; its choices may be fewer.
        learned: adds the trainable parts; they start as the merger off the shelf.
        limit: candidates to compare at most.
        batch_size: clips that go through the model at once.

    Returns:
        The plan, as `sttm.apply` returns it; `sttm.save` keeps it with the model.

    Example:
        >>> plan = sttm.calibrate(model, pixels, compute=0.4)
        >>> sttm.save(model, "calibrated")

    Raises:
        SttmError: for clips that the model does not take, a model that is merged already, or a compute that no
            candidate reaches; the model is then as it was.
    """
    return calibration(model, clips, compute, method, learned, limit=limit, batch_size=batch_size).plan


def calibration(
    model: nn.Module,
    clips: Tensor,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    *,
    limit: int = LIMIT,
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda forwards: None,
) -> Calibration:
    """Do what `calibrate` does, and return how it went; `advance` gets the number of clips of each forward."""
    model = api.check_plain(model, "sttm.calibrate", learned=learned)
    backbone, compute = backbone_of(model), check_compute(compute)
    _check_clips(backbone, clips, limit, batch_size)
    if not backbone.classifies(model):
        raise SttmError(
            f"calibration compares answers, and a {type(model).__name__} has no head that classifies; give a model "
            "that has one"
        )
    if spec_of(method).training == "required":
        raise SttmError(f"{method} has to be trained and calibration trains nothing; choose a method off the shelf")
    with _evaluating(model), torch.no_grad():
        search = Search(backbone, model, clips, (compute, method, learned), limit, batch_size, advance)
        found = search.run()
    api.install(model, found.plan)
    return found


def _check_clips(backbone: Backbone, clips: Any, limit: int, batch_size: int) -> None:
    if not isinstance(clips, Tensor) or not clips.is_floating_point():
        what = str(clips.dtype) if isinstance(clips, Tensor) else type(clips).__name__
        raise SttmError(f"clips are {what}; give a tensor of floats, the pixels that the model takes")
    backbone.clip_of(clips)
    if not len(clips):
        raise SttmError("there is no clip to calibrate on; give some 32 clips")
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value < 1:
            raise SttmError(f"{name}={value} is not 1 or more; give a whole number, or leave it out")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside the block; afterwards each module is as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
