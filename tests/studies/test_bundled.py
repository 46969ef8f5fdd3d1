"""The study that trains the models of motion: its whole command, for a few steps."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sttm
from sttm.models import load_with_preprocess


@pytest.mark.slow
def test_two_commands_make_both_models(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, bundle = study("bundled"), study("harness.bundle")
    few, folder = {"shared": 2, "plain": 1, "merged": 1}, tmp_path / "bundled"
    sizes = tuple(replace(size, steps={stage: few[stage] for stage in size.steps}) for size in module.SIZES)
    values = [("CACHE", tmp_path / "cache"), ("BUNDLE", folder), ("SIZES", sizes), ("BATCH", 4), ("FRESH_CLIPS", 20)]
    for name, value in values:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(bundle, "BUNDLE", folder)
    results, page = tmp_path / "results" / "bundled", tmp_path / "docs" / "evidence.md"
    monkeypatch.setattr(bundle, "FIGURES", results / "figures.json")
    page.parent.mkdir()
    page.write_text("<!-- results/bundled/table.md -->\n<!-- end -->\n")
    for words in ("data shared plain --size small", "data shared plain merged report"):
        monkeypatch.setattr(sys, "argv", f"bundled.py {words} --clips 60 --threads 1".split())
        module.main()
    figures = json.loads((results / "figures.json").read_text())["models"]
    assert figures.keys() == {"sttm-motion", "sttm-motion-plain"}
    assert figures["sttm-motion"]["steps"] == 1 and figures["sttm-motion"]["clips"] == 20
    merged, preprocess = load_with_preprocess(folder / "sttm-motion")
    plain = sttm.load(folder / "sttm-motion-plain")
    first = json.loads((folder / "sttm-motion" / "sttm.json").read_text())["mergers"][0]
    assert (first["frames_before"], first["tokens_before"]) == (8, 64)
    assert sttm.macs(merged) <= 0.5 * sttm.macs(plain) and preprocess.resize_with == "torch"
    assert "20 new clips" in (folder / "sttm-motion" / "README.md").read_text()
    assert "| `sttm-motion-plain` |" in page.read_text() and (results / "table.md").read_text() in page.read_text()
