"""The table of what the merger costs is that of its own formulas today."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers import ROOT

FOLDER = ROOT / "results" / "performance"


def test_the_table_says_what_was_counted(study: Any) -> None:
    merger = study("merger")
    measured = json.loads((FOLDER / "merger.json").read_text(encoding="utf-8"))
    assert (FOLDER / "merger.md").read_text(encoding="utf-8") == merger.table_of(measured)
    counted = merger.rows_of("VideoMAE-B, 16 x 224", timed=False)
    recorded = [row | {"seconds": None, "time_share": None} for row in measured["rows"]]
    assert counted == recorded[: len(counted)]
    assert {row["model"] for row in recorded} == set(merger.MODELS)


def test_the_page_says_which_shares_are_above_three_percent(study: Any) -> None:
    rows = json.loads((FOLDER / "merger.json").read_text(encoding="utf-8"))["rows"]
    above = {row["model"] for row in rows if row["merger_macs"] > 0.03 * row["macs"]}
    assert above == {"TimeSformer-B, 16 x 448"}
    assert all(row["merger_macs"] < 0.02 * row["macs_before"] for row in rows)
