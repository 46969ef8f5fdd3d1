"""Real people: UT-Interaction, six actions of two persons, plain and by several methods at 0.62 of the multiply-adds.

Five folds, each holding out four of the twenty sequences (two of each set), so that every one of the 120 clips is
tested once by a model that saw no clip of its sequence; and the split of the annotations, which holds out six
sequences. (The official protocol holds out one sequence at a time and trains within its own set: twenty trainings in
place of five.) All methods share start, recipe, seeds and number of steps; the number of epochs was chosen for the
plain model on sequences 7 and 17, which the split of the annotations trains on. One line of results/real.jsonl is one
run, one training; a study that was interrupted goes on where it stopped.

How to run, from the project's root, with the videos at ../shared/data/ut-interaction or where --data says:
    python studies/real.py run --seeds 0,1,2      python studies/real.py table
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from runs import COMMIT
from tables import show_in_docs

from sttm.config import load
from sttm.evaluation.metrics import Accuracy
from sttm.training import run as train

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "cache" / "real"
ROWS, TABLE = ROOT / "results" / "real.jsonl", ROOT / "results" / "real.md"
CONFIG = ROOT / "configs" / "ut_interaction.yaml"
#: What tells methods apart: settings over configs/ut_interaction.yaml.
METHODS = {
    "plain": ["merging.compute=1"],
    "sttm": ["merging.compute=0.62"],
    "random": ["merging.compute=0.62", "merging.method=random", "merging.learned=false"],
    "tome": ["merging.compute=0.62", "merging.method=tome", "merging.learned=false"],
}
FOLDS = {f"fold {i}": [str(i + 5 * n) for n in range(4)] for i in range(1, 6)}
SPLIT = "split of the annotations"


def where(fold: str, *, tested: bool) -> dict[str, str | list[str]]:
    """The lines that a fold trains on, or is tested on."""
    if fold == SPLIT:
        return {"view": "scene", "split": "test" if tested else "train"}
    held_out = FOLDS[fold]
    kept = [str(number) for number in range(1, 21) if str(number) not in held_out]
    return {"view": "scene", "split": ["train", "test"], "sequence": held_out if tested else kept}


def run(method: str, fold: str, seed: int, data: Path) -> dict[str, Any]:
    """One training and its test."""
    listed = str(data / "annotations.csv")
    output = CACHE / f"{method}-{fold.replace(' ', '-')}-{seed}"
    lists = {
        f"data.{name}": {"list": listed, "split": None, "where": where(fold, tested=name == "test")}
        for name in ("train", "test")
    }
    sets = [
        *METHODS[method], f"run.seed={seed}", f"run.output={output}", "run.trackers=[]", f"data.root={data}",
        *(f"{key}={json.dumps(value)}" for key, value in lists.items()),
    ]  # fmt: skip
    figures = train.train(load(CONFIG, sets))
    shutil.rmtree(output)
    tested = figures["test"]
    return dict(
        study="real", dataset="ut_interaction", method=method, variant=fold,
        compute=1.0 if method == "plain" else 0.62, learned=method == "sttm", frames=16, seed=seed,
        macs=figures["macs"], top1=tested["top1"], clips=tested["clips"], steps=figures["steps"],
        seconds=figures["seconds"], commit=COMMIT, machine=figures["machine"],
    )  # fmt: skip


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy of each method: mean over seeds, spread, and the interval that so few clips leave."""
    lines = [
        "Top-1 on UT-Interaction (six actions, 120 clips), mean over seeds ± standard deviation; in brackets the 95 %",
        "interval that the clips alone leave (Wilson, of one seed's clips at the mean). Seconds compare nothing: other",
        "work ran beside. Written by studies/real.py.",
        "",
        "| tested on | method | compute | GMACs | top-1 | seeds | seconds a training |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, variants in (("five folds, 120 clips", set(FOLDS)), (f"{SPLIT}, 37 clips", {SPLIT})):
        for method in METHODS:
            seeds: dict[int, Accuracy] = defaultdict(Accuracy)
            mine = [row for row in rows if row["method"] == method and row["variant"] in variants]
            for row in mine:
                seeds[row["seed"]] += Accuracy(round(row["top1"] * row["clips"]), row["clips"])
            whole = [a for seed, a in seeds.items() if sum(row["seed"] == seed for row in mine) == len(variants)]
            if not whole:
                continue
            shares = [accuracy.share for accuracy in whole]
            low, high = Accuracy(round(mean(shares) * whole[0].total), whole[0].total).interval
            spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
            macs, seconds = mine[0]["macs"] / 1e9, mean(row["seconds"] for row in mine)
            lines.append(
                f"| {name} | {method} | {mine[0]['compute']:g} | {macs:.3f} | {100 * mean(shares):.1f}{spread} "
                f"({100 * low:.1f} to {100 * high:.1f}) | {len(shares)} | {seconds:.0f} |"
            )
    machines = sorted({f"{row['machine']}, commit {row['commit']}" for row in rows})
    return "\n".join([*lines, "", *(f"Machine: {name}" for name in machines)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "ut-interaction")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "run":
        seeds = [int(seed) for seed in options.seeds.split(",")]
        pairs = [*((fold, seed) for seed, fold in product(seeds, FOLDS)), *product([SPLIT], seeds)]
        for (fold, seed), method in product(pairs, options.methods.split(",")):
            if (method, fold, seed) not in {(row["method"], row["variant"], row["seed"]) for row in done()}:
                row = run(method, fold, seed, options.data)
                with ROWS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{method} {fold} seed {seed}: {row['top1']:.3f} in {row['seconds']:.0f} s", flush=True)
    TABLE.write_text(table(done()))
    show_in_docs(TABLE)
    print(table(done()))


if __name__ == "__main__":
    main()
