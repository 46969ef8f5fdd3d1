"""Real people: UT-Interaction, six actions of two persons, plain and by several methods at 0.62 of the multiply-adds.

Five folds, each holding out four of the twenty sequences (two of each set), so that every one of the 120 clips is
tested once by a model that saw no clip of its sequence; and the split of the annotations, which holds out six
sequences. (The official protocol holds out one sequence at a time and trains within its own set: twenty trainings in
place of five.) All methods share start, recipe, seeds and number of steps; the number of epochs was chosen for the
plain model on sequences 7 and 17, which the split of the annotations trains on.

How to run, from the project's root, with the videos in STTM_DATA or ../shared/data:
    python studies/real.py run --seeds 0,1,2      python studies/real.py table
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from itertools import product
from statistics import mean, stdev
from typing import Any

from harness.data import CACHE, ROOT, data_root
from harness.provenance import commit
from harness.runs import Row, Run, append_row, folder_of, parser_of, rows_of, write_report
from harness.tables import markdown

from sttm.config import load
from sttm.evaluation.metrics import Accuracy
from sttm.training import run as engine

CONFIG = ROOT / "configs" / "ut_interaction.yaml"
#: What tells methods apart: settings over configs/ut_interaction.yaml.
METHODS = {
    "plain": ["merging.compute=1"],
    "sttm": ["merging.compute=0.62"],
    "random": ["merging.compute=0.62", "merging.method=random", "merging.learned=false"],
    "tome": ["merging.compute=0.62", "merging.method=tome", "merging.learned=false"],
}
FOLDS = {f"fold-{i}": [str(i + 5 * n) for n in range(4)] for i in range(1, 6)}
SPLIT = "annotated-split"
HEADS = ("tested on", "method", "compute", "GMACs", "top-1 (%)", "seeds", "seconds a training")


def where(fold: str, *, tested: bool) -> dict[str, str | list[str]]:
    """Return which lines of the annotations a fold trains on, or is tested on."""
    if fold == SPLIT:
        return {"view": "scene", "split": "test" if tested else "train"}
    held_out = FOLDS[fold]
    kept = [str(number) for number in range(1, 21) if str(number) not in held_out]
    return {"view": "scene", "split": ["train", "test"], "sequence": held_out if tested else kept}


def work(run: Run) -> Row:
    """Train and test one model through `sttm train`'s engine."""
    data = data_root() / "ut-interaction"
    output = CACHE / "real" / f"{run.method}-{run.variant}-{run.seed}"
    lists = {
        f"data.{name}": {
            "list": str(data / "annotations.csv"),
            "split": None,
            "where": where(run.variant, tested=name == "test"),
        }
        for name in ("train", "test")
    }
    sets = [
        *METHODS[run.method], f"run.seed={run.seed}", f"run.output={output}", "run.trackers=[]", f"data.root={data}",
        *(f"{key}={json.dumps(value)}" for key, value in lists.items()),
    ]  # fmt: skip
    figures = engine.train(load(CONFIG, sets))
    shutil.rmtree(output)
    tested = figures["test"]
    return dict(
        study="real", dataset=run.dataset, method=run.method, variant=run.variant, compute=run.compute,
        learned=run.method == "sttm", frames=run.frames, seed=run.seed, optimizer=run.optimizer, epochs=run.epochs,
        macs=figures["macs"], top1=tested["top1"], clips=tested["clips"], split="test", steps=figures["steps"],
        seconds=figures["seconds"], commit=commit(), machine=figures["machine"],
    )  # fmt: skip


def report(scale: str, split: str) -> None:
    """Write results/real/table.md: mean over seeds, deviation, and the interval that so few clips leave."""
    rows = rows_of("real", scale, split)
    lines = []
    for name, variants in (("five folds, 120 clips", set(FOLDS)), (f"{SPLIT}, 37 clips", {SPLIT})):
        for method in METHODS:
            mine = [row for row in rows if row["method"] == method and row["variant"] in variants]
            line = _line(mine, len(variants))
            lines += [(name, method, *line)] if line else []
    machines = sorted({f"{row['machine']}, commit {row['commit']}" for row in rows})
    text = (
        "Top-1 on UT-Interaction (six actions, 120 clips), mean over seeds ± standard deviation; in brackets the 95 % "
        "interval that the clips alone leave (Wilson, of one seed's clips at the mean). Seconds compare nothing: other "
        "work ran beside. Written by `python studies/real.py run`."
    )
    sections = [text, markdown(HEADS, lines), "\n".join(f"Machine: {name}" for name in machines)]
    (folder_of("real", scale, split) / "table.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _line(rows: list[Row], folds: int) -> tuple[str, ...] | None:
    """Return the cells of one method; None until a seed has all of its folds."""
    seeds: dict[int, Accuracy] = defaultdict(Accuracy)
    for row in rows:
        seeds[row["seed"]] += Accuracy(round(row["top1"] * row["clips"]), row["clips"])
    whole = [counted for seed, counted in seeds.items() if sum(row["seed"] == seed for row in rows) == folds]
    if not whole:
        return None
    shares = [counted.share for counted in whole]
    low, high = Accuracy(round(mean(shares) * whole[0].total), whole[0].total).interval
    deviation = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    shown = f"{100 * mean(shares):.1f}{deviation} ({100 * low:.1f} to {100 * high:.1f})"
    gmacs, seconds = f"{rows[0]['macs'] / 1e9:.3f}", f"{mean(row['seconds'] for row in rows):.0f}"
    return f"{rows[0]['compute']:g}", gmacs, shown, str(len(shares)), seconds


def main() -> None:
    options = parser_of(__doc__, "ut_interaction").parse_args()
    if options.what == "run":
        seeds = [int(seed) for seed in options.seeds.split(",")]
        pairs = [*((fold, seed) for seed, fold in product(seeds, FOLDS)), *product([SPLIT], seeds)]
        for (fold, seed), method in product(pairs, (options.methods or ",".join(METHODS)).split(",")):
            common: dict[str, Any] = dict(frames=16, optimizer="adamw", compute=1.0 if method == "plain" else 0.62)
            run = Run("real", "ut_interaction", method, variant=fold, seed=seed, **common)
            if not run.is_in(rows_of("real")):
                row = work(run)
                append_row(run.folder, row)
                print(f"{method} {fold} seed {seed}: {row['top1']:.3f} in {row['seconds']:.0f} s", flush=True)
    write_report(report, "real", "small", "test")


if __name__ == "__main__":
    main()
