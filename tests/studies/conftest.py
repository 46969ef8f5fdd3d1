"""The studies as modules: studies/ is no package, its files import each other from their own folder."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sttm.merging import METHODS
from sttm.merging.selectors import SELECTORS
from sttm.synth.videos import encode
from tests.helpers import ROOT

WORDS = [("at", "train"), ("blue", "train"), ("a", "train"), ("at", "validation"), ("blue", "test"), ("b", "test")]


#: What the studies have registered: a module that is imported once registers once.
REGISTRIES: tuple[dict[str, Any], ...] = (METHODS, SELECTORS)
REGISTERED: tuple[dict[str, Any], ...] = ({}, {})


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of studies/ by its name; the methods that it registers are there for this test only."""
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    before = [dict(registry) for registry in REGISTRIES]
    for registry, own in zip(REGISTRIES, REGISTERED, strict=True):
        registry.update(own)
    yield importlib.import_module
    for registry, own, kept in zip(REGISTRIES, REGISTERED, before, strict=True):
        own.update({name: value for name, value in registry.items() if name not in kept})
        registry.clear()
        registry.update(kept)


@pytest.fixture
def data(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with a small grid-words of its own and an empty cache."""
    module = study("harness.data")
    folder = tmp_path / "data" / "grid-words"
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "annotations.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split", "slot", "sentence", "frames"))
        for number, (word, split) in enumerate(WORDS):
            encode(rng.integers(256, size=(16, 64, 64, 3), dtype=np.uint8), folder / "clips" / f"{number}.mp4")
            rows.writerow((f"clips/{number}.mp4", word, split, "letter" if len(word) == 1 else "colour", "s", 16))
    monkeypatch.setenv("STTM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    module.clip_set.cache_clear()
    yield module
    module.clip_set.cache_clear()
