"""Speed at equal accuracy: for each method the most clips a second at a top-1 within 0.5 points of plain.

Accuracies are those of the studies `tune` and `offshelf`; clips a second are measured here, all methods of a dataset in
turn in one run, and the median of the rounds counts. Nothing else should run meanwhile.

How to run, from the project's root, after the other two:
    python studies/speed.py run
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from harness.pretraining import SCALES
from harness.provenance import commit
from harness.runs import folder_of, rows_of, write_report
from harness.tables import Group, Row, groups, markdown
from harness.training import device, new_model
from harness.variants import put_in

from sttm.devices import machine
from sttm.synth.clips import CLASSES

NEAR, BATCH, ROUNDS = 0.005, 8, 15
STUDIES = ("tune", "offshelf")


def timed(rows: list[Row], learned: bool) -> list[float]:
    """Return the clips a second of the model of each row, the median of rounds in turn."""
    models = []
    for row in rows:
        model = new_model(replace(SCALES["small"].shape, frames=row["frames"]), len(CLASSES[row["dataset"]])).eval()
        put_in(model, row["method"], row["compute"], row["variant"], learned=learned)
        models.append(model)
    pixels = torch.randn(BATCH, rows[0]["frames"], 3, 48, 48)
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for round_ in range(ROUNDS + 2):
            for model, mine in zip(models, seconds, strict=True):
                started = time.perf_counter()
                model(pixels)
                if round_ >= 2:
                    mine.append(time.perf_counter() - started)
    return [BATCH / median(mine) for mine in seconds]


def measure() -> list[Row]:
    """Return a row for each method and compute of the two studies."""
    rows: list[Row] = []
    for study in STUDIES:
        for _, of_set in groups(rows_of(study), "dataset").items():
            found = list(groups(of_set.rows, "method", "compute").values())
            rates = timed([group.rows[0] for group in found], study == "tune")
            rows += [_row(study, rate, group) for rate, group in zip(rates, found, strict=True)]
    return rows


def _row(study: str, rate: float, group: Group) -> Row:
    kept = ("dataset", "method", "compute", "frames", "macs")
    return {key: group.rows[0][key] for key in kept} | dict(
        study="speed", variant=study, learned=study == "tune", seed=len(group.rows), optimizer="", epochs=None,
        top1=group.top1, steps=0, seconds=0.0, clips_per_s=round(rate, 1), commit=commit(), machine=machine(device()),
    )  # fmt: skip


def report(scale: str, split: str) -> None:
    """Write results/speed/table.md."""
    rows = rows_of("speed", scale, split)
    sections = [
        "For each method the compute with the most clips a second among those within 0.5 points of plain (means over "
        "seeds of results/tune/table.md and results/offshelf/table.md).",
        f"Written by `python studies/speed.py run`: batches of {BATCH}, float32, {ROUNDS} rounds in turn, medians. "
        f"Machine: {rows[0]['machine']}. Commit: {rows[0]['commit']}.",
    ]
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["variant"], row["dataset"]), []).append(row)
    heads = ("method", "compute", "top-1 (%)", "clips/s", "speed-up")
    for (study, dataset), mine in kinds.items():
        plain = next(row for row in mine if row["method"] == "plain")
        methods = dict.fromkeys(row["method"] for row in mine)
        lines = [_line(method, [row for row in mine if row["method"] == method], plain) for method in methods]
        sections += [f"### {dataset}, {study}", markdown(heads, lines)]
    table = folder_of("speed", scale, split) / "table.md"
    table.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _line(method: str, rows: list[Row], plain: Row) -> tuple[str, ...]:
    near = [row for row in rows if row["top1"] >= plain["top1"] - NEAR]
    if not near:
        return (method, "none within 0.5 points", "", "", "")
    best = max(near, key=lambda row: row["clips_per_s"])
    speed_up = best["clips_per_s"] / plain["clips_per_s"]
    return (
        method,
        f"{best['compute']:g}",
        f"{100 * best['top1']:.1f}",
        f"{best['clips_per_s']:.0f}",
        f"{speed_up:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    if parser.parse_args().what == "run":
        rows = measure()
        (folder_of("speed") / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(report, "speed", "small", "test")


if __name__ == "__main__":
    main()
