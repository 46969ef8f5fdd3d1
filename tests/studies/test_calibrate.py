"""The study of calibration: whole runs on random clips, their table, and what the metrics pick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def calibrate(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The study on random clips, with results of its own."""
    module, runs = study("calibrate"), study("harness.runs")

    def clips(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        make = torch.Generator().manual_seed(len(split))
        return torch.randn(8, 16, 3, 64, 64, generator=make), torch.arange(8)

    monkeypatch.setattr(module, "clips_of", clips)
    monkeypatch.setattr(module, "SET", 4)
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "evidence.md").write_text("# Evidence\n")
    return module


def test_every_run_is_a_row_and_the_table_shows_them(
    calibrate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["calibrate.py", "run", "--methods", "sttm,rlt", "--compute", "0.4", "--seeds", "0,1"]
    monkeypatch.setattr("sys.argv", command)
    calibrate.main()
    folder = tmp_path / "results" / "calibrate"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [(row["method"], row["variant"], row["seed"]) for row in rows] == [
        ("plain", "", 0),
        *((method, *run) for method in ("sttm", "rlt") for run in (("", 0), ("calibrated", 0), ("calibrated", 1))),
    ]
    assert all(not row["learned"] and row["clips"] == 8 for row in rows)
    assert all(0.39 < row["macs"] / rows[0]["macs"] <= 0.4 for row in rows[1:])
    table = (folder / "table.md").read_text()
    assert "| **sttm** |" in table and "| rlt |" in table and "of 2 |" in table


def test_the_metrics_pick_the_plan_that_is_like_the_plain_model(calibrate: Any) -> None:
    rng, plain_NK = np.random.default_rng(0), torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    merged, top1_P = [plain_NK + 2 * noise, plain_NK + 0.1 * noise], torch.tensor([0.25, 0.75])
    table = calibrate._picked(plain_NK, merged, top1_P, rng)
    assert f"| {next(iter(calibrate.METRICS))} | 75.0 (75.0) | 75.0 (75.0) |" in table
    assert len(table.splitlines()) == 2 + len(calibrate.METRICS)
