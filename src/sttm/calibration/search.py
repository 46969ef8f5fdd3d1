"""Search the plan of one checkpoint: candidates are compared on few clips, and only the best of them on more.

Legend: N clips, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones.base import Backbone
from sttm.calibration.agreement import Agreement, distances
from sttm.errors import SttmError
from sttm.merging import method_named
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.patching.schedule import find_plan
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


@dataclass(eq=False)
class _Candidate:
    """One plan, and its logits of the first clips."""

    choice: Choice
    plan: Plan
    logits_NK: list[Tensor] = field(default_factory=list)


class Search:
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
