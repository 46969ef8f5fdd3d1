"""The tables of docs/performance.md are those of the measured files."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import ROOT


@pytest.mark.parametrize("name", ["models.md", "batches.md", "engines.md"])
def test_a_table_says_what_was_measured(study: Any, name: str) -> None:
    performance = study("performance")
    assert name in performance.TABLES
    assert (ROOT / "results" / "performance" / name).read_text(encoding="utf-8") == performance.table_of(name)


def test_each_model_and_batch_has_its_section_and_its_last_column(study: Any) -> None:
    models, batches = (study("performance").table_of(name) for name in ("models.md", "batches.md"))
    assert models.count("### ") == 2 and "sttm-motion, 1 clip at a time" in models and "0.62, as saved" in models
    assert "sttm-motion, 8 clips at a time" in batches and "over eager" not in batches
