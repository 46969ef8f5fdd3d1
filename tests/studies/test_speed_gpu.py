"""The study of speed on a GPU runs from end to end, on tiny models and the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.extended  # four models are compiled
def test_the_smoke_run_measures_every_method_and_mode(study: Any, tmp_path: Path) -> None:
    study("speed_gpu").main(["run", "--smoke", str(tmp_path)])
    measured = json.loads((tmp_path / "speed.json").read_text())
    rows = measured["rows"]
    assert {row["mode"] for row in rows} == {"eager", "compile"} and {row["batch"] for row in rows} == {2}
    assert [row["method"] for row in rows] == ["plain", "sttm", "tome", "random"] * 2
    assert not measured["left_out"], measured["left_out"]
    for row in rows:
        assert row["realised"] == pytest.approx(row["speedup"] * row["compute"], abs=2e-3)
        assert row["dtype"] == "bf16" and row["share_of_rate"] > 0
        assert (row["peak_memory_mb"] is None) == (row["mode"] == "compile")
        assert row["compute"] == 1 if row["method"] == "plain" else 0.5 < row["compute"] <= 0.62
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n| ") == 1 + 1 + len(rows) and "of the matrix rate" in table


def test_without_time_everything_is_named_as_left_out(study: Any) -> None:
    gpu = study("speed_gpu")
    bench = gpu.Bench(gpu.TINY, (1,), 1, -1.0, gpu.torch.device("cpu"))
    measured = bench.run()
    assert not measured["rows"]
    assert [left for left in measured["left_out"] if "no time left" in left] == [
        f"{name}, batch 1, {mode}: no time left" for mode in ("eager", "compile") for name in gpu.TINY
    ]
    assert "no time left" in gpu.table_of(measured)
