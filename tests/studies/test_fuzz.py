"""The tables of docs/trust.md are those of what was counted, and there is no fault in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers import ROOT

COUNTED = sorted(path.stem for path in (ROOT / "results" / "fuzz").glob("*.json"))


@pytest.mark.parametrize("name", COUNTED)
def test_a_table_says_what_was_counted_and_nothing_was_a_fault(study: Any, name: str) -> None:
    counts = json.loads((ROOT / "results" / "fuzz" / f"{name}.json").read_text(encoding="utf-8"))
    table = getattr(study("fuzz"), name)(counts)
    assert (ROOT / "results" / "fuzz" / f"{name}.md").read_text(encoding="utf-8") == table
    assert counts["faults"] == [] and counts["seed"] == 0


def test_every_kind_of_case_and_of_fault_has_its_column(study: Any) -> None:
    kinds = {"clip": {"tried": 3, "answered": 1, "refused": 1, "crash": 1}, "list": {"tried": 2, "answered": 2}}
    kinds["list"] |= {"refused": 0, "crash": 0}
    told = {"seed": 1, "machine": "M", "commit": "c", "kinds": kinds}
    table = study("fuzz").cases(told)
    assert "| kind | tried | answered | refused | crash |" in table and "| all | 5 | 3 | 1 | 1 |" in table
