"""Runs of a study: who takes part, which runs are done, and their rows in results/.

One line of results/<study>.jsonl is one run. A study that was interrupted goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import arena
import numpy as np
import torch
from tables import show_in_docs
from torch import nn
from variants import put_in

import sttm
from sttm.devices import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


#: Of the code; a plus where it has been changed since.
COMMIT = _git("rev-parse", "--short", "HEAD") + "+" * bool(
    _git("status", "--porcelain", "--", "src", "studies", "configs")
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What takes part: a method at a compute, in a variant of it (see variants.py), on so many frames."""

    method: str = "plain"
    compute: float = 1.0
    variant: str = ""
    frames: int = 8


@dataclass(frozen=True)
class Run:
    """One run to make: an entry on a data set with a seed, tested on a split."""

    study: str
    dataset: str
    entry: Entry
    seed: int
    scale: str = "small"
    split: str = "test"

    def is_in(self, rows: Iterable[Row]) -> bool:
        wanted = asdict(self.entry) | {"dataset": self.dataset, "seed": self.seed}
        return any(all(row[key] == value for key, value in wanted.items()) for row in rows)

    def model(self, *, learned: bool = True) -> nn.Module:
        """The plain model of the seed with the method put in, not yet tuned."""
        model = arena.plain(self.seed, self.dataset, self.scale, self.entry.frames)
        put_in(model, self.entry.method, self.entry.compute, self.entry.variant, learned=learned)
        return model

    def row(self, model: nn.Module, right: np.ndarray, steps: int, seconds: float) -> Row:
        """The line of a finished run; `right` says, as bits, which clips it got right."""
        learned = any("merger" in name for name, _ in model.named_parameters())
        return dict(
            study=self.study, dataset=self.dataset, **asdict(self.entry), learned=learned, seed=self.seed,
            macs=sttm.macs(model), top1=float(right.mean()), clips=len(right), split=self.split, steps=steps,
            seconds=round(seconds, 1), commit=COMMIT, machine=machine(arena.device()),
            right=np.packbits(right).tobytes().hex(),
        )  # fmt: skip


def trained(run: Run) -> Row:
    """Tunes the entry and tests it."""
    model = run.model()
    seconds = arena.tune(model, run.dataset, run.seed, run.scale, run.entry.frames)
    right = arena.answers(model, run.dataset, run.split, run.scale, run.entry.frames)
    return run.row(model, right, arena.SCALES[run.scale].tuning[run.dataset], seconds)


def rows_of(study: str, scale: str = "small", split: str = "test") -> list[Row]:
    path = path_of(study, scale, split)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def path_of(study: str, scale: str, split: str, ending: str = "jsonl") -> Path:
    """Only what the test split says is a result; what the validation split says stays in the cache."""
    stem = study if scale == "small" else f"{study}-{scale}"
    return (RESULTS if split == "test" else arena.CACHE / split) / f"{stem}.{ending}"


def carry_out(runs: list[Run], work: Callable[[Run], Row], processes: int) -> None:
    """Makes the runs that are missing, each in one thread of a process of its own where there are several."""
    missing = [run for run in runs if not run.is_in(rows_of(run.study, run.scale, run.split))]
    print(f"{len(missing)} of {len(runs)} runs to make", flush=True)
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_one_thread) as pool:
        waiting = {pool.submit(work, run): run for run in missing}
        for done in as_completed(waiting):
            run, row = waiting[done], done.result()
            path = path_of(run.study, run.scale, run.split)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{run.dataset} seed {run.seed} {run.entry}: {row['top1']:.4f} in {row['seconds']:.0f} s", flush=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def main(study: str, doc: str | None, entries: list[Entry], work: Callable[[Run], Row],
         report: Callable[[str, str], None]) -> None:  # fmt: skip
    """The command of a study: `run` makes what is missing, `table` writes the table and the plot of what is there."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--datasets", default="motion,scene")
    parser.add_argument("--scale", choices=list(arena.SCALES), default="small")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--methods", help="only these, by name")
    parser.add_argument("--variants", help="only these, by name")
    parser.add_argument("--computes", help="only these")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.what == "run":
        chosen = [entry for entry in entries if _among(entry.method, options.methods)]
        chosen = [entry for entry in chosen if _among(entry.variant, options.variants)]
        chosen = [entry for entry in chosen if _among(str(entry.compute), options.computes)]
        seeds, datasets = [int(seed) for seed in options.seeds.split(",")], options.datasets.split(",")
        runs = [
            Run(study, dataset, entry, seed, options.scale, options.split)
            for seed, entry, dataset in product(seeds, chosen, datasets)
        ]
        carry_out(runs, work, options.processes)
    report(options.scale, options.split)
    if (options.scale, options.split) == ("small", "test"):
        show_in_docs(path_of(study, "small", "test", "md"))


def _among(name: str, names: str | None) -> bool:
    return names is None or name in names.split(",")
