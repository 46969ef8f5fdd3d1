"""Training steps of plain and merged models: what a row says, where the figures come from, what is refused."""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.benchmark import train
from sttm.benchmark.speed import make_variants
from sttm.errors import SttmError
from tests.helpers import tiny_model

ROW = {"model", "method", "compute", "macs", "batch", "dtype", "mode", "clips_per_s", "speedup", "ideal_speedup"}
ROW |= {"step_ms", "forward_ms", "backward_ms", "optimizer_ms", "realised"}
ROW |= {"peak_memory_mb", "memory", "loaded_memory_mb"}


@pytest.fixture
def plain(tmp_path: Path) -> str:
    return str(sttm.save(tiny_model("videomae"), tmp_path / "plain"))


@pytest.mark.slow  # two processes import torch and transformers
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_each_variant_takes_its_steps_in_a_process_of_its_own(plain: str) -> None:
    steps: list[tuple[int, int]] = []
    result = train.run([plain], computes=[0.5], batches=[64], rounds=2, advance=lambda *of: steps.append(of))
    assert all(set(row) == ROW for row in result["rows"]) and steps == [(1, 6)] * 6
    first, merged = result["rows"]
    assert (first["method"], merged["method"]) == ("plain", "sttm") and merged["compute"] <= 0.5
    assert first["speedup"] == first["memory"] == 1
    assert 0 < merged["peak_memory_mb"] < first["peak_memory_mb"]


def test_figures_are_medians_over_rounds_and_of_ratios() -> None:
    variants = make_variants(tiny_model("videomae"), ["sttm"], [0.5])
    seconds = np.array([[[1, 2, 1], [1, 1, 0]], [[1, 4, 1], [1, 1, 1]], [[3, 4, 1], [0, 1, 1]]], float)
    first, second = train._rows("m", variants, 2, seconds, [(2**20, 4 * 2**20), (2**21, 2**21)])
    assert first["step_ms"]["p50"] == 6000 and first["clips_per_s"] == pytest.approx(2 / 6, abs=1e-3)
    assert (second["forward_ms"], second["backward_ms"], second["optimizer_ms"]) == (1000, 1000, 1000)
    assert second["speedup"] == 2  # the median of 2, 2, 4
    assert second["realised"] == pytest.approx(2 * second["compute"], abs=1e-3)
    assert (second["peak_memory_mb"], second["memory"], second["loaded_memory_mb"]) == (2, 0.5, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_the_peak_is_what_a_step_takes_above_what_is_loaded() -> None:
    step = train.Step(tiny_model("videomae"), 2, "fp32", torch.device("cpu"))

    def loss() -> torch.Tensor:
        # 64 MiB that the backward pass needs, and as much for their product
        return (torch.ones(2**24) * step.model.get_parameter("classifier.bias").sum()).sum()

    step._loss = loss  # type: ignore[method-assign]
    step()
    assert 127 < (step.peak() or 0) / 2**20 < 140


def test_a_step_trains_the_learned_mergers_too() -> None:
    (_, merged) = make_variants(tiny_model("videomae"), ["sttm"], [0.5], learned=True)
    before = {name: value.clone() for name, value in merged.model.named_parameters()}
    step = train.Step(merged.model, 2, "bf16", torch.device("cpu"))
    for _ in range(2):  # some parts start behind others that are zero
        assert len(step()) == len(train.PARTS) and all(p.grad is None for p in step.model.parameters())
    moved = {name for name, value in merged.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(".merger." in name for name in moved) and "classifier.weight" in moved
    assert step.loaded >= 3 * sum(p.numel() * 4 for p in merged.model.parameters() if p.requires_grad) * 0.9


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"models": []}, "nothing to time"),
        ({"methods": ["magic"]}, "unknown method 'magic'"),
        ({"computes": [0.001]}, "0.001"),
        ({"dtypes": ["int8"]}, "unknown dtype 'int8'"),
        ({"batches": [0]}, "batch=0"),
    ],
)
def test_mistakes_are_told_before_any_step(
    plain: str, monkeypatch: pytest.MonkeyPatch, changed: Any, sentence: str
) -> None:
    monkeypatch.setattr(train, "_measure", lambda *_: pytest.fail("took a step"))
    with pytest.raises(SttmError, match=sentence):
        train.run(**({"models": [plain], "computes": [0.5], "rounds": 1} | changed))


def test_a_process_that_dies_is_one_sentence(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: Any) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(train, "_measure", died)
    with pytest.raises(SttmError, match="want of memory; use a smaller batch size"):
        train.run([plain], computes=[0.5], rounds=1)
