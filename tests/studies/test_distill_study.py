"""The study of distillation: whole runs on a few clips, and their table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sttm.merging import motion
from sttm.synth.videos import SynthSettings

SETTINGS = SynthSettings(kind="motion", clips=20, seed=41, train=0.5, validation=0, test=0.5)


@pytest.fixture
def distill(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The study on twenty clips, with results and a cache of its own."""
    module, runs, data = study("distill"), study("harness.runs"), study("harness.data")
    monkeypatch.setattr(module, "CLIPS", data.Dataset(synthetic=SETTINGS))
    for name, value in {"STEPS": 2, "BATCH": 2, "LR": 1e-2}.items():
        monkeypatch.setattr(module, name, value)
    for place in (module, data):
        monkeypatch.setattr(place, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "evidence.md").write_text("<!-- results/distill/table.md -->\n<!-- end -->\n")
    module.clips.cache_clear()
    yield module
    module.clips.cache_clear()


def test_variants_start_alike_and_end_apart(distill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains: list[float] = []
    run = distill.distill

    def noted(wanted: Any) -> Any:
        gains.append(motion.GAIN)
        return run(wanted)

    monkeypatch.setattr(distill, "distill", noted)
    monkeypatch.setattr("sys.argv", ["distill.py", "run", "--seeds", "0", "--compute", "0.15"])
    distill.main("distill", None, distill.ENTRIES, distill.work, distill.report, datasets="motion")
    folder = tmp_path / "results" / "distill"
    rows = {row["variant"]: row for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())}
    assert list(rows) == list(distill.TOLD)
    assert gains == [16, 1, 16, 16] and motion.GAIN == 16
    assert [row["lr"] for row in rows.values()] == [0.01, 0.01, 0.01, 1e-4]
    ours, once, fixed, slow = rows.values()
    assert ours["before"] == once["before"] == slow["before"] and ours["clips"] == 10
    assert len({row["after"]["kl"] for row in rows.values()}) == 4
    assert ours["learned"] and once["learned"] and not fixed["learned"]
    page = (tmp_path / "docs" / "evidence.md").read_text()
    assert (folder / "table.md").read_text() in page
    cell = f"| {100 * ours['before']['agreement']:.1f} | {100 * ours['after']['agreement']:.1f} |"
    assert f"| **sttm** | {distill.TOLD['']} | 1 {cell}" in page
