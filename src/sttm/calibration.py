"""Choose the plan of one checkpoint: of many schedules, the one whose answers agree best with those of the plain model.

Labels are not needed: the plain model says what is right. Its logits are computed once; candidates are compared on few
clips first, and only the best of them on more (successive halving). The same clips give the same plan.

Legend: N clips, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sttm.agreement import Agreement, distances
from sttm.backbones import backbone_of
from sttm.backbones.base import Backbone
from sttm.errors import SttmError
from sttm.merging import method_named, spec_of
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.patching.schedule import check_compute, find_plan
from sttm.patching.search import SCHEDULES, OutOfReachError

#: Where mergers may sit, as shares of the depth; the schedule's own come first.
PLACES: tuple[tuple[float, ...], ...] = (
    *SCHEDULES,
    *((1 / 3, 2 / 3), (1 / 6, 1 / 2), (1 / 12, 1 / 2), (0, 1 / 2), (1 / 4, 3 / 4), (0, 1 / 3), (1 / 2, 3 / 4)),
    *((1 / 12, 1 / 4, 1 / 2), (1 / 6, 1 / 3, 1 / 2), (1 / 4, 1 / 2, 3 / 4)),
    *((1 / 12,), (1 / 6,), (1 / 4,), (1 / 3,), (1 / 2,), (0,)),
)
#: How the reduction may be split, as the shares of the first and of the last merger.
SHARES = ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3))
#: What is varied in each round, the share of all candidates that are tried by its end, the share of the clips that they
#: are compared on, and how many go on from it.
ROUNDS = (("layers", 0.45, 1 / 4, 4), ("shares", 0.7, 1 / 4, 3), ("window", 0.85, 1 / 2, 3), ("selector", 1, 1 / 2, 3))
#: Candidates that are compared at most.
LIMIT = 40


@dataclass(frozen=True)
class Choice:
    """What a candidate chooses, as options of `find_plan`; None leaves it to the schedule."""

    layers: tuple[int, ...] | None = None
    shares: tuple[float, float] | None = None
    window: int | None = None
    selector: str | None = None


@dataclass(frozen=True)
class Calibration:
    """The outcome of a calibration.

    Attributes:
        plan: what was chosen.
        agreement: of that plan with the plain model, on the clips that it was chosen by.
        default: of the plan that `sttm.apply` would make, on the same clips; None where it is out of reach.
        candidates: how many plans were compared.
        seconds: the time that took.
    """

    plan: Plan
    agreement: Agreement
    default: Agreement | None
    candidates: int
    seconds: float


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
        search = _Search(backbone, model, clips, (compute, method, learned), limit, batch_size, advance)
        found = search.run()
    api.install(model, found.plan)
    return found


@dataclass(eq=False)
class _Candidate:
    """One plan, and its logits of the first clips."""

    choice: Choice
    plan: Plan
    logits_NK: list[Tensor] = field(default_factory=list)


class _Search:
    """Successive halving: each round varies one choice of the best candidates so far, and compares on more clips."""

    def __init__(
        self,
        backbone: Backbone,
        model: nn.Module,
        clips: Tensor,
        wanted: tuple[float, str, bool],
        limit: int,
        batch_size: int,
        advance: Callable[[int], None],
    ) -> None:
        self.backbone, self.model, self.clips = backbone, model, clips
        self.wanted, self.clip_shape = wanted, backbone.clip_of(clips)
        self.limit, self.batch_size, self.advance = limit, batch_size, advance
        # Clips often come class by class: the first of them should be of many classes.
        self.order_N = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))
        self.candidates: list[_Candidate] = []

    def run(self) -> Calibration:
        """Return the best candidate on all clips."""
        started = time.perf_counter()
        default, out_of_reach = None, SttmError()
        try:
            default = self._add(Choice())
        except OutOfReachError as error:
            out_of_reach = error
        if default is not None and not default.plan.mergers:  # compute=1
            same = Agreement(0.0, 0.0, 1.0)
            return Calibration(default.plan, same, same, 1, time.perf_counter() - started)
        self.plain_NK = torch.cat(self._logits(0, len(self.clips)))
        if not self.plain_NK.isfinite().all():
            raise SttmError("the plain model's logits of these clips are not finite; check the clips and the dtype")
        best = [] if default is None else [default]
        for name, tried, share, keep in ROUNDS:
            pool = [*best, *self._varied(name, best, round(tried * self.limit))]
            best = self._best(pool, round(share * len(self.clips)))[:keep]
        if not best:
            raise out_of_reach
        first = self._best(best if default is None else [*best, default], len(self.clips))[0]
        if default is not None and not self._surely_better(first, default):
            first = default
        agreement = self._agreement(first, len(self.clips))
        own = None if default is None else self._agreement(default, len(self.clips))
        return Calibration(first.plan, agreement, own, len(self.candidates), time.perf_counter() - started)

    def _varied(self, name: str, best: list[_Candidate], limit: int) -> Iterator[_Candidate]:
        """Yield candidates that differ from the best ones in one choice, until so many have been tried in all."""
        choices = [candidate.choice for candidate in best] or [Choice()]
        for value in self._values(name):
            for choice in choices:
                if len(self.candidates) >= limit:
                    return
                try:
                    candidate = self._add(replace(choice, **{name: value}))
                except OutOfReachError:
                    continue
                if candidate is not None:
                    yield candidate

    def _values(self, name: str) -> list[Any]:
        """Return what a choice may be, besides the schedule's own."""
        reducer = method_named(self.wanted[1])
        if reducer.spec.whole_frames:
            return []
        frames, depth = self.backbone.grid(self.model, self.clip_shape).frames, len(self.backbone.blocks(self.model))
        match name:
            case "layers":
                return list(dict.fromkeys(tuple(sorted({round(p * depth) for p in places})) for places in PLACES))
            case "shares":
                return list(SHARES)
            case "window":
                return [window for window in (1, 2, 4) if frames % window == 0]
            case _:
                return [] if self.backbone.aligned or reducer.default_selector is None else list(reducer.selectors)

    def _add(self, choice: Choice) -> _Candidate | None:
        """Return a new candidate; None where its plan is there already, or too far below the compute."""
        compute, method, learned = self.wanted
        plan = find_plan(self.backbone, self.model, compute, method, learned, self.clip_shape, **asdict(choice))
        if any(plan == other.plan for other in self.candidates) or (self.candidates and plan.short_by):
            return None
        self.candidates.append(_Candidate(choice, plan))
        return self.candidates[-1]

    def _best(self, pool: list[_Candidate], count: int) -> list[_Candidate]:
        """Return candidates by their agreement on the first clips; of equal ones, the one that was added first."""
        count = min(len(self.clips), max(count, 1))
        return sorted(
            pool, key=lambda candidate: float(self._distances(candidate, count).mean().nan_to_num(nan=torch.inf))
        )

    def _surely_better(self, candidate: _Candidate, default: _Candidate) -> bool:
        """Tell whether a candidate is better than the default by more than the standard error over the clips."""
        count = len(self.clips)
        gain_N = self._distances(default, count) - self._distances(candidate, count)
        return bool(gain_N.mean() > gain_N.std() / count**0.5) if count > 1 else bool(gain_N.mean() > 0)

    def _distances(self, candidate: _Candidate, count: int) -> Tensor:
        return distances(self.plain_NK[:count], self._merged(candidate, count))

    def _agreement(self, candidate: _Candidate, count: int) -> Agreement:
        return Agreement.of(self.plain_NK[:count], self._merged(candidate, count))

    def _merged(self, candidate: _Candidate, count: int) -> Tensor:
        """Return a candidate's logits of the first clips; those that are not there yet are computed."""
        done = sum(map(len, candidate.logits_NK))
        if done < count:
            # Learned mergers start as those off the shelf, which cost less.
            api.install(self.model, replace(candidate.plan, learned=False, motion=False))
            try:
                candidate.logits_NK += self._logits(done, count)
            finally:
                api.remove(self.model)
        return torch.cat(candidate.logits_NK)[:count]

    def _logits(self, start: int, end: int) -> list[Tensor]:
        """Return the logits of some clips, batch by batch, in float32 on the CPU."""
        device, logits_NK = next(self.model.parameters()).device, []
        for index_N in self.order_N[start:end].split(self.batch_size):
            some = self.model(self.clips[index_N].to(device)).logits.float().cpu()
            # A space-only TimeSformer answers for each frame: [N*T, K] -> [N, T, K] -> [N, K]
            logits_NK.append(some.unflatten(0, (len(index_N), -1)).mean(1))
            self.advance(len(index_N))
        return logits_NK


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
