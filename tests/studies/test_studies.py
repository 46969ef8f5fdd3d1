"""The studies' own parts: rows, paired tests, variants; and that tables say what the rows say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.patching.api import plan_of
from tests.helpers import ROOT

FIELDS = {
    "study", "dataset", "method", "variant", "compute", "learned", "frames", "seed", "macs", "top1", "steps", "seconds",
    "commit", "machine",
}  # fmt: skip
STUDIES = ("trained", "equal", "offshelf", "ablation", "speed", "gates")
WRITTEN = sorted(name for name in STUDIES if (ROOT / "results" / f"{name}.jsonl").exists())


@pytest.fixture(autouse=True)
def studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies"))


def study(name: str) -> Any:
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "results" / f"{name}.jsonl").read_text().splitlines()]


def row(right: list[int], seed: int = 0, **changes: Any) -> dict[str, Any]:
    bits = np.packbits(np.array(right, bool)).tobytes().hex()
    return dict(right=bits, clips=len(right), seed=seed, top1=sum(right) / len(right), macs=1e9) | changes


def test_a_paired_difference_is_of_the_same_clips_and_seeds() -> None:
    tables = study("tables")
    many, few = [1] * 30 + [0] * 10, [1] * 10 + [0] * 30
    one = tables.Group((row(many, 0), row(many, 1), row(few, 2)))
    other = tables.Group((row(few, 0), row(many, 1)))
    found = tables.difference(one, other)
    assert one.is_beside(one) and not one.is_beside(other)
    assert found.by_seed == (0.5, 0.0) and found.p < 0.001
    assert found.shown == "+25.0 (+0.0 to +50.0), p < 0.001"
    # As many right, but others: nothing to tell them apart.
    swapped = tables.difference(tables.Group((row(many),)), tables.Group((row(many[::-1]),)))
    assert swapped.by_seed == (0.0,) and swapped.p == 1.0
    # One clip of forty is no evidence: it falls either way by a coin.
    assert tables.difference(tables.Group((row(many),)), tables.Group((row([0, *many[1:]]),))).p > 0.9
    assert tables.difference(one, tables.Group((row(many, 7),))) is None


def test_a_run_that_is_done_is_known_again() -> None:
    runs = study("runs")
    run = runs.Run("trained", "scene", runs.Entry("sttm", 0.5), seed=1)
    done = dict(dataset="scene", method="sttm", compute=0.5, variant="", frames=8, seed=1)
    assert run.is_in([done]) and not run.is_in([])
    for change in (dict(seed=2), dict(compute=0.62), dict(variant="hard"), dict(frames=16), dict(dataset="motion")):
        assert not run.is_in([done | change])


def test_variants_meet_the_budget_and_learn() -> None:
    arena, variants = study("arena"), study("variants")
    pixels = torch.randn(1, 8, 3, 48, 48)
    seen = set()
    for variant in ("", *variants.MERGERS, *variants.ARGUMENTS):
        torch.manual_seed(0)
        model = arena.new_model("small", 16, 8).train()
        variants.put_in(model, "sttm", 0.5, variant)
        assert 0.49 <= plan_of(model).compute <= 0.5, variant
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "merger" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        torch.manual_seed(0)
        answer = model(pixels).logits.detach()
        assert answer.isfinite().all(), variant
        seen.add(round(float(answer.sum()), 5))
        sttm.remove(model)
    assert len(seen) == 1 + len(variants.MERGERS) + len(variants.ARGUMENTS)  # each computes something else


def test_gates_hold_their_budget_and_freeze_into_a_plan_of_it() -> None:
    arena, gates = study("arena"), study("gates")
    torch.manual_seed(0)
    gated = gates.Gated(arena.new_model("small", 16, 8), 0.5).train()
    gated.logit_L.data += torch.tensor([1.0, -1.0, 0.5, 0.0])
    gated.to_budget()
    assert float(gated.macs().detach() / gated.budget) == pytest.approx(1, abs=0.01)
    gated(torch.randn(2, 8, 3, 48, 48)).square().sum().backward()
    assert gated.logit_L.grad.abs().min() > 0
    counts = gated.counts().tolist()
    assert counts == sorted(counts, reverse=True) and counts[0] <= 256
    plan = gates.frozen(arena.new_model("small", 16, 8), counts, 0.5)
    assert 0.49 <= plan.compute <= 0.5
    seen = gates.kept(plan, 4)
    assert all(abs(frozen / count - 1) < 0.1 for frozen, count in zip(seen, counts, strict=True))


def test_clips_reversed_and_mirrored_change_their_class_and_back() -> None:
    arena = study("arena")
    for kind in ("motion", "scene"):
        for change in arena.changed_classes(kind):
            assert torch.equal(change[change], torch.arange(len(change)))
    mirrored, backwards = arena.changed_classes("motion")
    names = arena.MOTION_CLASSES
    assert names[mirrored[names.index("Moving something left")]] == "Moving something right"
    assert names[backwards[names.index("Moving something up")]] == "Moving something down"


def test_every_clip_comes_once_an_epoch() -> None:
    arena = study("arena")
    steps = [arena.order(seed=3, step=step, batch=8, length=40) for step in range(10)]
    for epoch in (steps[:5], steps[5:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(40))
    assert not np.array_equal(np.concatenate(steps[:5]), np.concatenate(steps[5:]))
    rates = [arena.shape_of_rate(step, 100) for step in range(100)]
    assert max(rates) == 1 and rates.index(1) == 9 and rates[-1] < 0.01 and rates[0] == pytest.approx(0.1)


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_say_all_they_have_to(name: str) -> None:
    rows = rows_of(name)
    keys = [tuple(row[key] for key in ("dataset", "method", "variant", "compute", "frames", "seed")) for row in rows]
    assert len(set(keys)) == len(keys)
    for found in rows:
        assert set(found) >= FIELDS and found["study"] == name and 0 <= found["top1"] <= 1
        if "right" in found:
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(found["right"]), np.uint8))[: found["clips"]]
            assert found["top1"] == pytest.approx(bits.mean()) and found["split"] == "test"


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "speed"])
def test_tables_are_those_of_the_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = study(name)
    monkeypatch.setattr(module, "path_of", lambda study, scale, split, ending: tmp_path / f"{study}.{ending}")
    monkeypatch.setattr(module, "plot", lambda *_: None, raising=False)
    module.report("small", "test")
    written = (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert (tmp_path / f"{name}.md").read_text(encoding="utf-8") == written


def test_the_page_shows_the_tables() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for name in [*WRITTEN, "real"]:
        shown = page.split(f"<!-- results/{name}.md -->\n\n")[1].split("\n<!-- end -->")[0]
        assert shown == (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8"), name
