"""The models that come with the package: their folders, the file of their figures, and their cards.

The text of a card is studies/cards/<model>.md; the figures are put in from results/bundled/figures.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

from torch import nn

import sttm
from harness.data import ROOT
from harness.runs import RESULTS
from harness.tables import markdown, show_in_docs
from sttm.data.transforms.preprocess import Preprocess

BUNDLE = ROOT / "src" / "sttm" / "bundled"
FIGURES = RESULTS / "bundled" / "figures.json"
CARDS = ROOT / "studies" / "cards"


def write_model(model: nn.Module, name: str, preprocess: Preprocess) -> Path:
    """Write a transformers folder of a bundled model, with the preprocessing beside it."""
    folder = sttm.save(model.eval(), BUNDLE / name)
    preprocess.to_folder(folder)
    return folder


def figures_of(name: str) -> dict[str, Any]:
    """Return what the file of figures says of a model; nothing where it does not know it."""
    return _figures().get(name, {})


def write_figures(rows: dict[str, dict[str, Any]]) -> None:
    """Put the figures of some models into the file, beside those of the others, and all into the table of the docs."""
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    models = _figures() | rows
    FIGURES.write_text(json.dumps(dict(models=models), indent=2) + "\n", encoding="utf-8")
    lines = [(f"`{name}`", f"{row['macs'] / 1e9:.3f}", _top1(row), f"{row['clips']:,}") for name, row in models.items()]
    table = FIGURES.with_name("table.md")
    table.write_text(markdown(("model", "GMACs", "top-1 (95 % interval)", "clips"), lines) + "\n", encoding="utf-8")
    show_in_docs(table)


def text(name: str) -> Template:
    """Return one of the texts of studies/cards."""
    return Template((CARDS / name).read_text(encoding="utf-8"))


def write_cards(*names: str) -> None:
    """Write the model cards of some bundled models."""
    for name in names:
        (BUNDLE / name / "README.md").write_text(card_of(name), encoding="utf-8")


def card_of(name: str) -> str:
    """Return the model card of a bundled model: its text, with the figures of the model and of its twin put in."""
    twin = name.removesuffix("-plain") if name.endswith("-plain") else f"{name}-plain"
    values: dict[str, Any] = {}
    for prefix, row in (("", figures_of(name)), ("twin_", figures_of(twin))):
        shown: dict[str, Any] = dict(accuracy=_top1(row), clips=f"{row['clips']:,}")
        shown |= dict(
            count=row["clips"],
            share=f"{row['top1']:.4f}",
            gmacs=f"{row['macs'] / 1e9:.3f}",
            minutes=round(row["seconds"] / 60),
        )
        shown |= {key: f"{row[key]:,}" for key in ("steps", "epochs", "made_clips") if key in row}
        values |= {prefix + key: value for key, value in (row | shown).items()}
    return text(f"{name}.md").substitute(values)


def _top1(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['top1']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text(encoding="utf-8"))["models"] if FIGURES.exists() else {}
