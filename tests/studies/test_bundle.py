"""The cards of the bundled models."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

import sttm
from sttm.models import BUNDLED, resolve
from tests.helpers import ROOT

FIGURES = json.loads((ROOT / "results/bundled/figures.json").read_text(encoding="utf-8"))["models"]


@pytest.mark.parametrize("name", BUNDLED)
def test_each_has_a_card_that_says_what_was_measured(study: Any, name: str) -> None:
    text = (resolve(name) / "README.md").read_text(encoding="utf-8")
    assert text == study("harness.bundle").card_of(name)
    header = yaml.safe_load(text.split("---")[1])
    assert {"license", "datasets", "tags", "pipeline_tag"} <= header.keys()
    (metric,) = header["model-index"][0]["results"][0]["metrics"]
    assert (
        metric["value"] == pytest.approx(FIGURES[name]["top1"], abs=1e-4) and metric["clips"] == FIGURES[name]["clips"]
    )
    assert sttm.macs(sttm.load(name)) == FIGURES[name]["macs"]
