"""Realised over ideal speed-up of models of five families, eager and compiled, in fp32 and bf16, 1 and 4 clips at once.

`python studies/performance.py run realised` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness.tables import Row, markdown
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification

from sttm.benchmark.shapes import shape
from sttm.benchmark.speed import make_variants, time_variants
from sttm.devices import machine

COMPUTES, BATCHES, ROUNDS = (0.62, 0.4), (1, 4), 3
PAIRS = [("eager", "fp32"), ("eager", "bf16"), ("compile", "fp32"), ("compile", "bf16")]
#: What realised over ideal is hoped to reach.
GOALS = {"fp32": 0.97, "bf16": 0.95}
#: Blocks of a model: at full size the table takes hours on two cores. In all else models are of their standard size.
LAYERS = 4


def _tower(layers: int) -> nn.Module:
    config = Dinov2Config(image_size=224, num_hidden_layers=layers, num_labels=1000)
    return Dinov2ForImageClassification(config)


#: The models, of so many blocks, and how many pictures or clips count as one clip.
MODELS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "VideoMAE-B": (lambda layers: shape("videomae", num_hidden_layers=layers), 1),
    "ViViT-B of 16 frames": (lambda layers: shape("vivit", num_frames=16, num_hidden_layers=layers), 1),
    "TimeSformer-B": (lambda layers: shape("timesformer", num_hidden_layers=layers), 1),
    "V-JEPA 2 L": (lambda layers: shape("vjepa2", 174, frames_per_clip=16, num_hidden_layers=layers), 1),
    "DINOv2-B, 8 frames one by one": (_tower, 8),
}


def measure(
    models: dict[str, tuple[Callable[[int], nn.Module], int]] = MODELS,
    *,
    layers: int = LAYERS,
    batches: tuple[int, ...] = BATCHES,
    pairs: list[tuple[str, str]] = PAIRS,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Return the rows of every model, plain and merged, on each pair of an engine and a dtype."""
    rows = []
    for label, (build, pictures) in models.items():
        variants = make_variants(build(layers).eval(), ["sttm"], COMPUTES)
        for batch in batches:
            # Compiled code of other models and batches counts against a limit.
            torch.compiler.reset()
            timed = time_variants(label, variants, batch * pictures, pairs, rounds)
            rows += [row | {"layers": layers, "clips": batch} for row in timed]
    return {"machine": machine(torch.device("cpu")), "rows": rows}


def write(source: Path) -> Path:
    """Write the table beside the measured file, and return where it is."""
    table = source.with_suffix(".md")
    table.write_text(table_of(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
    return table


def table_of(measured: dict[str, Any]) -> str:
    """Return the table: a row for each model, compute and number of clips, a column for each engine and dtype."""
    rows: list[Row] = [row for row in measured["rows"] if row["compute"] < 1]
    pairs = list(dict.fromkeys((row["mode"], row["dtype"]) for row in rows))
    found: dict[tuple[str, str, int], dict[tuple[str, str], Row]] = {}
    for row in rows:
        key = (row["model"], f"{1 / row['ideal_speedup']:.2f}", row["clips"])
        found.setdefault(key, {})[row["mode"], row["dtype"]] = row
    heads = ("model", "compute", "clips", *(f"{mode}, {dtype}" for mode, dtype in pairs))
    lines = [
        (model, compute, str(clips), *(f"{row['realised']:.2f} ({row['speedup']:.2f} x)" for row in by_pair.values()))
        for (model, compute, clips), by_pair in found.items()
    ]
    what = f"{rows[0]['layers']} blocks each, random weights; realised over ideal speed-up, in brackets the speed-up"
    kept = sum(row["realised"] >= GOALS[row["dtype"]] for row in rows)
    goals = " and ".join(f"{goal} in {dtype}" for dtype, goal in GOALS.items())
    told = f"Median {median(row['realised'] for row in rows):.2f}; at least {goals} in {kept} of {len(rows)} cells."
    return f"`results/performance/realised.json`, {measured['machine']}; {what}. {told}\n\n{markdown(heads, lines)}\n"
