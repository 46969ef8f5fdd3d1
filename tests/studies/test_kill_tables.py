"""The tables of the studies of faults, memory, nodes, scale and engines are made of the files beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers import ROOT

STUDIES = {"batch": "kills", "others": "kills", "nodes": "nodes", "memory": "memory", "scaling": "scaling",
           "agreement": "engines"}  # fmt: skip
FILES = sorted(path for name in ("kills", "engines") for path in (ROOT / "results" / name).glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_table_says_what_was_found(study: Any, path: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    written = path.with_suffix(".md").read_text(encoding="utf-8")
    assert written == study(STUDIES[path.stem]).table_of(found)
    assert f"`{found['command']}`" in written and found["commit"] in written


def test_growth_is_after_the_warm_up_and_of_each_kind(study: Any) -> None:
    memory = study("memory")
    steady = [{"rows": 100 * n, "driver": 500.0 if n > 20 else 50.0 * n, "Ray": 300.0 + n} for n in range(101)]
    grown = memory.growth([*steady, {"rows": 10_000, "Ray": 5.0}])  # one that is ending has no driver
    assert grown["driver"]["growth_mb"] == 0 and grown["Ray"]["growth_mb"] == pytest.approx(60, abs=1)
    assert grown["driver"]["at_the_end_mb"] == 500 and grown["model actor"]["at_the_end_mb"] == 0
    assert len(memory.thinned(steady, 50)) <= 50


def test_a_fleet_with_enough_cores_uses_its_gpus(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = study("scaling")
    monkeypatch.setattr(scaling, "CLIPS", 200_000)
    measured = {"decode_long": 20.0, "decode_small": 90.0, "answer": 120.0, "long_bytes": 3e5, "run_1_cores": 50.0,
                "run_2_cores": 80.0}  # fmt: skip
    few, enough = [row for row in scaling.fleets(measured, 200.0, 50.0) if row["gpus"] == 8 and row["compute"] == 1]
    assert few["cores_a_gpu"] == 16 and few["bottleneck"] == "decoders" and few["busy"]["models"] < 0.6
    assert (
        enough["cores_a_gpu"] == 30
        and enough["bottleneck"] == "models"
        and enough["clips_per_s"] == pytest.approx(8 * 200e12 / 2 / 180_344_893_440, rel=0.1)
    )
    one, two = scaling.check(measured)
    assert one["simulated"] == pytest.approx(1 / (1 / 90 + 1 / 120), rel=0.02)
    assert two["simulated"] == pytest.approx(90, rel=0.02) and two["ratio"] == pytest.approx(80 / 90, rel=0.02)
