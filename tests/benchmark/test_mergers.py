"""What counts as the mergers' own time."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import sttm
from sttm.benchmark import mergers
from sttm.patching.hooks import Merger
from tests.helpers import lively, logits, pixels


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the modules below move: its one value is the time."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


# ToMe merges inside a block, in three hooks; the others before it, in one.
@pytest.mark.parametrize("method", ["sttm", "random", "tome"])
def test_the_share_is_that_of_the_mergers(method: str, clock: list[float]) -> None:
    model = lively("videomae")
    plan = sttm.apply(model, compute=0.6, method=method)
    clips, blocks = pixels(model), model.videomae.encoder.layer

    def takes(module: Any, seconds: float) -> None:
        module.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + seconds))

    for merger in plan.mergers:
        takes(blocks[merger.layer].merger, 1.0)
    takes(model.classifier, 6.0)
    before = logits(model, clips)
    found = mergers.merger_share(model, torch.device("cpu"), lambda: model(clips), passes=2)
    count = len(plan.mergers)
    assert found == pytest.approx(count / (count + 6))
    assert torch.equal(logits(model, clips), before)
    sttm.remove(model)  # the hooks are those that were put in
    assert not any(isinstance(hook, Merger) for m in model.modules() for hook in m._forward_pre_hooks.values())


def test_hooks_are_restored_after_a_forward_that_fails() -> None:
    model = lively("videomae")
    sttm.apply(model, compute=0.6)
    registries = [m._forward_pre_hooks for m in model.modules()]
    before = [dict(registry) for registry in registries]
    with pytest.raises(ZeroDivisionError):
        mergers.merger_share(model, torch.device("cpu"), lambda: 1 / 0, passes=1)
    assert [dict(registry) for registry in registries] == before
