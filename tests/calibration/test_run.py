"""Calibration: the plan meets the compute, agrees at least as well as the default, and leaves no other trace."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import sttm
from sttm.calibration import Agreement, calibration, search
from sttm.merging import METHODS, spec_of
from sttm.patching import api
from tests.helpers import FAMILIES, lively, logits, pixels, videomae

COMPUTE = 0.5
OFF_THE_SHELF = [name for name in METHODS if spec_of(name).training != "required"]


def agreement(model: Any, plain: torch.Tensor, clips: torch.Tensor) -> Agreement:
    return Agreement.of(plain, logits(model, clips).unflatten(0, (len(clips), -1)).mean(1))


def check(model: Any, method: str, tmp_path: Path) -> None:
    """Check what holds for every family and method."""
    clips = pixels(model, 4)
    state, raw = {name: value.clone() for name, value in model.state_dict().items()}, logits(model, clips)
    plain = raw.unflatten(0, (len(clips), -1)).mean(1)
    default = sttm.apply(model, COMPUTE, method)
    least = agreement(model, plain, clips).distance
    sttm.remove(model)
    plan = sttm.calibrate(model, clips, COMPUTE, method, limit=6)
    assert plan.method == method and plan.compute <= COMPUTE and plan.target == COMPUTE
    assert not plan.short_by or plan == default
    assert sttm.macs(model) == plan.macs_after
    assert agreement(model, plain, clips).distance <= least + 1e-5
    loaded = sttm.load(sttm.save(model, tmp_path / "saved"))
    assert api.plan_of(loaded) == plan and str(api.plan_of(loaded)) == str(plan)
    assert torch.equal(logits(loaded, clips), logits(model, clips))
    sttm.remove(model)
    assert torch.equal(logits(model, clips), raw)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    check(lively(family), "sttm", tmp_path)


@pytest.mark.parametrize("method", [name for name in OFF_THE_SHELF if name != "sttm"])
def test_every_method_off_the_shelf(method: str, tmp_path: Path) -> None:
    check(lively("videomae"), method, tmp_path)


def test_the_same_clips_give_the_same_plan_whatever_the_random_state() -> None:
    model = lively("videomae")
    clips, before = pixels(model, 4), torch.random.get_rng_state()
    one = calibration(model, clips, COMPUTE)
    assert torch.equal(torch.random.get_rng_state(), before)
    sttm.remove(model)
    torch.manual_seed(5)
    other = calibration(model, clips, COMPUTE, batch_size=3)
    assert one.plan == other.plan and one.candidates == other.candidates > 10
    assert one.agreement.kl == pytest.approx(other.agreement.kl, abs=1e-5)


def test_it_finds_what_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared on all clips, no candidate is better than the one that was chosen."""
    model = lively("videomae")
    clips = pixels(model, 4)
    monkeypatch.setattr(search, "ROUNDS", tuple((*round_[:2], 1, 2) for round_ in search.ROUNDS))
    seen: list[tuple[float, sttm.Plan]] = []
    compare = search.Search._distances

    def listen(self: Any, candidate: Any, count: int) -> torch.Tensor:
        found = compare(self, candidate, count)
        seen.append((float(found.mean()), candidate.plan))
        return found

    monkeypatch.setattr(search.Search, "_distances", listen)
    monkeypatch.setattr(search.Search, "_surely_better", lambda *_: True)
    found = calibration(model, clips, COMPUTE)
    assert found.agreement.distance == pytest.approx(min(distance for distance, _ in seen))
    assert len({distance for distance, _ in seen}) > 10  # the least of equal figures would prove nothing
    assert len({str(asdict(plan)) for _, plan in seen}) == found.candidates
    # Every choice was varied.
    plans = [plan for _, plan in seen]
    assert {plan.selector for plan in plans} == {"novelty", "stride"}
    assert len({tuple(m.layer for m in plan.mergers) for plan in plans}) > 4
    assert {plan.mergers[0].frames_before // plan.mergers[0].frames for plan in plans} == {1, 2, 4}


def test_few_clips_come_first() -> None:
    model = lively("videomae")
    forwards: list[int] = []
    found = calibration(model, pixels(model, 16), COMPUTE, advance=forwards.append)
    assert sum(forwards) < 16 * (1 + found.candidates) * 0.6
    assert found.default is not None and found.default.distance >= found.agreement.distance


def test_the_default_stays_unless_another_plan_is_better_by_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that is better on average, but not by the standard error over the clips, is not chosen."""
    model, plans = lively("videomae"), []
    clips = pixels(model, 4)
    default = sttm.apply(model, COMPUTE)
    sttm.remove(model)
    for gains in ((2.0, 2.0, 2.0, 1.9), (9.0, -3.0, -3.0, -2.0)):
        gain_N = torch.tensor(gains)

        def told(self: Any, candidate: Any, count: int, gain_N: torch.Tensor = gain_N) -> torch.Tensor:
            return torch.full((count,), 10.0) - gain_N[:count] * (candidate.plan != default)

        monkeypatch.setattr(search.Search, "_distances", told)
        plans.append(sttm.calibrate(model, clips, COMPUTE, limit=4))
        sttm.remove(model)
    assert plans[0] != default and plans[1] == default


def test_learned_mergers_start_as_those_off_the_shelf() -> None:
    model = lively("videomae")
    clips = pixels(model, 4)
    plain = logits(model, clips)
    found = calibration(model, clips, 0.6, learned=True, limit=4)
    assert found.plan.learned and any(".merger.motion" in name for name, _ in model.named_parameters())
    assert agreement(model, plain, clips).kl == pytest.approx(found.agreement.kl, abs=1e-5)


def test_each_module_keeps_its_mode() -> None:
    model = lively("videomae").train()
    model.classifier.eval()
    sttm.calibrate(model, pixels(model), COMPUTE, limit=2)
    assert model.training and not model.classifier.training


def test_compute_1_merges_nothing() -> None:
    model = lively("videomae")
    clips = pixels(model)
    before = logits(model, clips)
    assert sttm.calibrate(model, clips, 1).mergers == ()
    assert torch.equal(logits(model, clips), before)


@pytest.mark.parametrize(
    ("clips", "options", "message"),
    [
        (torch.zeros(0, 8, 3, 32, 32), {}, "no clip to calibrate on"),
        (torch.zeros(2, 3, 32, 32), {}, "5|batch of clips"),
        (torch.zeros(2, 6, 3, 32, 32), {}, "takes clips of"),
        (torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8), {}, "tensor of floats"),
        ([1, 2], {}, "tensor of floats"),
        (torch.full((2, 8, 3, 32, 32), torch.nan), {}, "not finite"),
        (torch.zeros(2, 8, 3, 32, 32), {"compute": 0.001}, "out of reach"),
        (torch.zeros(2, 8, 3, 32, 32), {"compute": 2}, "no share"),
        (torch.zeros(2, 8, 3, 32, 32), {"method": "nothing"}, "unknown method"),
        (torch.zeros(2, 8, 3, 32, 32), {"method": "patchmerger", "learned": True}, "has to be trained"),
        (torch.zeros(2, 8, 3, 32, 32), {"limit": 0}, "limit=0"),
    ],
)
def test_what_cannot_be_is_one_sentence(clips: Any, options: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    model = videomae().eval()
    with pytest.raises(sttm.SttmError, match=message) as caught:
        sttm.calibrate(model, clips, **options)
    assert not str(caught.value).endswith(".")
    assert not api.is_merged(model)


def test_a_merged_model_is_refused() -> None:
    model = lively("videomae")
    sttm.apply(model, COMPUTE)
    with pytest.raises(sttm.SttmError, match=r"merged already.*sttm\.calibrate"):
        sttm.calibrate(model, pixels(model))


def test_a_failure_leaves_the_model_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("videomae").train()
    clips = pixels(model)
    real = search.Search._logits

    def fail(self: Any, start: int, end: int) -> list[torch.Tensor]:
        if api.is_merged(model):
            raise KeyboardInterrupt
        return real(self, start, end)

    monkeypatch.setattr(search.Search, "_logits", fail)
    with pytest.raises(KeyboardInterrupt):
        sttm.calibrate(model, clips)
    assert not api.is_merged(model) and model.training
