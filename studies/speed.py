"""Speed at equal accuracy: for each method the most clips a second at an accuracy within 0.5 points of plain.

Accuracies are those of the studies `trained` and `offshelf`; clips a second are measured here, all entries of a data
set in turn in one run, and the median of the rounds stands. Nothing else should run meanwhile.

How to run, from the project's root, after the other two:
    python studies/speed.py run
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import arena
import torch
from runs import COMMIT, RESULTS, Entry, rows_of
from tables import Group, Row, groups, markdown, show_in_docs
from variants import put_in

from sttm.devices import machine

NEAR, BATCH, ROUNDS = 0.005, 8, 15


def timed(entries: list[tuple[Entry, bool]], dataset: str) -> list[float]:
    """Clips a second of each entry (and whether it is learned), the median of rounds in turn."""
    models = []
    for entry, learned in entries:
        model = arena.new_model("small", len(arena.CLASSES[dataset]), entry.frames).eval()
        put_in(model, entry.method, entry.compute, entry.variant, learned=learned)
        models.append(model)
    pixels = torch.randn(BATCH, entries[0][0].frames, 3, 48, 48)
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
    rows: list[Row] = []
    for study in ("trained", "offshelf"):
        for (dataset,), of_set in groups(rows_of(study), "dataset").items():
            found = groups(of_set.rows, "method", "compute")
            entries = [(Entry(method, compute), study == "trained") for method, compute in found]
            rates = timed(entries, dataset)
            for (entry, learned), rate, group in zip(entries, rates, found.values(), strict=True):
                rows.append(_row(study, dataset, entry, learned, rate, group))
    return rows


def _row(study: str, dataset: str, entry: Entry, learned: bool, rate: float, group: Group) -> Row:
    return dict(
        study="speed", dataset=dataset, method=entry.method, variant=study, compute=entry.compute, learned=learned,
        frames=entry.frames, seed=len(group.rows), macs=group.rows[0]["macs"], top1=group.top1, steps=0, seconds=0.0,
        clips_per_s=round(rate, 1), commit=COMMIT, machine=machine(arena.device()),
    )  # fmt: skip


def report(rows: list[Row]) -> str:
    sections = [
        "For each method the entry with the most clips a second among those within 0.5 points of plain (means over "
        "seeds of results/trained.md and results/offshelf.md).",
        f"Written by `python studies/speed.py run`: batches of {BATCH}, float32, {ROUNDS} rounds in turn, medians. "
        f"Machine: {rows[0]['machine']}. Commit: {rows[0]['commit']}.",
    ]
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["variant"], row["dataset"]), []).append(row)
    for (study, dataset), mine in kinds.items():
        plain = next(row for row in mine if row["method"] == "plain")
        lines = []
        for method in dict.fromkeys(row["method"] for row in mine):
            near = [r for r in mine if r["method"] == method and r["top1"] >= plain["top1"] - NEAR]
            if not near:
                lines.append((method, "none within 0.5 points", "", "", ""))
                continue
            best = max(near, key=lambda row: row["clips_per_s"])
            faster = best["clips_per_s"] / plain["clips_per_s"]
            lines.append((method, f"{best['compute']:g}", f"{100 * best['top1']:.1f}", f"{best['clips_per_s']:.0f}",
                          f"{faster:.2f}"))  # fmt: skip
        heads = ("method", "compute", "top-1 (%)", "clips/s", "times plain")
        sections += [f"### {dataset}, {study}", markdown(heads, lines)]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run"])
    parser.parse_args()
    rows = measure()
    (RESULTS / "speed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (RESULTS / "speed.md").write_text(report(rows))
    show_in_docs(RESULTS / "speed.md")


if __name__ == "__main__":
    main()
