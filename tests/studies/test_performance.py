"""The tables of docs/performance.md: those of the measured files; and the runs that measure them, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Dinov2Config, Dinov2ForImageClassification

from tests.helpers import ROOT, tiny_model


@pytest.mark.parametrize("name", ["models", "batches", "peers", "engines", "train"])
def test_a_table_says_what_was_measured(study: Any, name: str) -> None:
    performance = study("performance")
    table = ROOT / "results" / "performance" / f"{name}.md"
    assert performance.source_of(name).exists() == table.exists()
    assert not table.exists() or table.read_text(encoding="utf-8") == performance.table_of(name)


def test_each_model_and_batch_has_its_section_and_its_columns(study: Any) -> None:
    models, batches = (study("performance").table_of(name) for name in ("models", "batches"))
    assert models.count("### ") == 2 and "sttm-motion, 1 clip at a time" in models and "0.49, as saved" in models
    assert "sttm-motion, 8 clips at a time" in batches


@pytest.fixture
def elsewhere(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The study, with results and a page of its own, and a tiny model in place of VideoMAE-B."""
    performance, results = study("performance"), tmp_path / "results"
    (results / "performance").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    names = ("peers", "train", "frames", "realised")
    marks = (f"<!-- results/performance/{name}.md -->\n<!-- end -->\n" for name in names)
    (tmp_path / "docs" / "performance.md").write_text("".join(marks))
    monkeypatch.setattr(performance, "RESULTS", results)
    monkeypatch.setattr("sttm.benchmark.shapes.SHAPES", {"videomae-b": lambda: tiny_model("videomae")})
    return performance


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> str:
    monkeypatch.setattr("sys.argv", ["performance.py", "run", *names])
    module.main()
    return (module.RESULTS.parent / "docs" / "performance.md").read_text()


def test_a_run_measures_writes_and_shows(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(elsewhere, monkeypatch, "peers")
    rows = json.loads((elsewhere.RESULTS / "speed-peers.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["plain", "sttm", "tome", "random"]
    assert (elsewhere.RESULTS / "performance" / "peers.md").read_text() in page
    assert "over eager in fp32 | mergers' share |" in page and ", tome |" in page and " % |" in page


def test_the_table_of_training_has_steps_and_memory(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"model": "m", "method": "plain", "compute": 1, "macs": 10**9, "batch": 2, "dtype": "fp32", "mode": "train"}
    plain |= {"step_ms": {"p50": 60.0, "p90": 80.0}, "forward_ms": 20.0, "backward_ms": 30.0, "optimizer_ms": 10.0}
    plain |= {"clips_per_s": 33.0, "speedup": 1.0, "ideal_speedup": 1.0, "realised": 1.0}
    plain |= {"peak_memory_mb": 2000.0, "memory": 1.0, "loaded_memory_mb": 1300.0}
    (elsewhere.RESULTS / "speed-train.json").write_text(json.dumps({"machine": "two cores", "rows": [plain]}))
    cells = "| fp32 | 1 (plain) | 60.0 (80.0) | 20 / 30 / 10 | 1.00 | 1.00 | 2,000 | 1.00 | 1,300 |"
    assert cells in elsewhere.table_of("train")


def test_frames_has_a_table_and_a_plot(elsewhere: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = study("frames")
    tiny = dict(layers=4, side=64, rounds=1, hidden_size=24, num_attention_heads=2, intermediate_size=48)
    measure = frames.measure
    monkeypatch.setattr(frames, "measure", lambda: measure((16, 32), **tiny))
    page = run(elsewhere, monkeypatch, "frames")
    rows = json.loads((elsewhere.RESULTS / "performance" / "frames.json").read_text())["rows"]
    assert [row["frames"] for row in rows] == [16, 16, 32, 32] * 4 and {row["layers"] for row in rows} == {4}
    assert {row["model"] for row in rows} == set(frames.FAMILIES)
    # 4 x 4 patches, over 2 frames each, but for TimeSformer's
    assert [row["tokens"] for row in rows[::4]] == [128, 128, 256, 128]
    assert (elsewhere.RESULTS / "performance" / "frames.md").read_text() in page
    for folder in (elsewhere.RESULTS / "performance", elsewhere.RESULTS.parent / "docs"):
        assert (folder / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_realised_has_a_line_for_each_model_compute_and_batch(
    elsewhere: Any, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    realised = study("realised")
    sizes = dict(image_size=56, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, num_labels=3)
    tower = Dinov2Config(**sizes)  # type: ignore[arg-type]
    builders = lambda layers: tiny_model("videomae"), lambda layers: Dinov2ForImageClassification(tower)
    models = {"one": (builders[0], 1), "frames": (builders[1], 2)}
    measure = realised.measure
    monkeypatch.setattr(realised, "measure", lambda: measure(models, pairs=[("eager", "fp32")], rounds=1))
    page = run(elsewhere, monkeypatch, "realised")
    rows = json.loads((elsewhere.RESULTS / "performance" / "realised.json").read_text())["rows"]
    assert [(row["model"], row["clips"], row["batch"]) for row in rows[::3]] == [
        ("one", 1, 1), ("one", 4, 4), ("frames", 1, 2), ("frames", 4, 8)
    ]  # fmt: skip
    assert (elsewhere.RESULTS / "performance" / "realised.md").read_text() in page
    assert page.count(" x) |") == 8 and "| model | compute | clips | eager, fp32 |" in page
