"""The study of engines, on few clips and one engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_a_run_counts_the_clips_whose_class_stays(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = study("engines")
    monkeypatch.setattr(engines, "RESULTS", tmp_path)
    told = ["run", "--clips", "18", "--models", "sttm-motion", "--engines", "eager"]
    monkeypatch.setattr("sys.argv", ["engines.py", *told])
    engines.main()
    found = json.loads((tmp_path / "engines" / "agreement.json").read_text())
    (row,) = found["rows"]
    assert (row["model"], row["engine"], row["dtype"], row["clips"]) == ("sttm-motion", "eager", "bf16", 18)
    assert row["same"] >= 16  # of a model that names 98 % of such clips
    table = (tmp_path / "engines" / "agreement.md").read_text()
    assert f"| eager, bf16 | {row['same'] / 18:.1%} of 18 |" in table and f"`{found['command']}`" in table


def test_another_answer_is_counted(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    engines = study("engines")
    given = iter([torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])])
    monkeypatch.setattr(engines, "answers", lambda *_: next(given))
    (row,) = engines.agreements("sttm-motion", [], ["eager"])
    assert (row["clips"], row["same"]) == (4, 3)
