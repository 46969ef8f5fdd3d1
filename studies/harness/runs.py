"""Runs of a study: what is to be run, which runs are done, and their rows in results/<study>/.

One line of rows.jsonl is one run; answers/<id>.npz beside it holds which test clips it got right. A study that was
interrupted goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sttm
from harness.data import CACHE, ROOT
from harness.pretraining import SCALES, clips_of, plain, tune, tuning_recipe
from harness.provenance import commit
from harness.tables import show_in_docs
from harness.training import device, predict
from harness.variants import put_in
from sttm.devices import machine

RESULTS = ROOT / "results"
#: What makes two runs of a study the same run.
KEY = ("dataset", "method", "variant", "compute", "frames", "seed", "optimizer", "epochs")
Row = dict[str, Any]


# --- rows -------------------------------------------------------------------------------------------------------------


def folder_of(study: str, scale: str = "small", split: str = "test") -> Path:
    """Return the folder of a study's rows. Only what the test split says is a result; the rest stays in the cache."""
    name = study if scale == "small" else f"{study}-{scale}"
    return (RESULTS if split == "test" else CACHE / "results" / split) / name


def row_id(row: Row) -> str:
    """Return the name of a run's answers, made of what tells it apart from the others."""
    parts = [row["dataset"], row["method"], row["variant"], f"{row['compute']:g}", f"{row['frames']}f"]
    parts += [row["optimizer"]] if row.get("optimizer") else []
    parts += [f"{row['epochs']:g}e"] if row.get("epochs") else []
    return "-".join([*(part.replace(" ", "_") for part in parts if part), f"seed{row['seed']}"])


def rows_of(study: str, scale: str = "small", split: str = "test") -> list[Row]:
    """Return the rows of a study; each has the path of its answers under "answers"."""
    folder = folder_of(study, scale, split)
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    # A line that was cut off while it was written is no row.
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    rows: list[Row] = [json.loads(line) for line in whole]
    return [row | {"answers": folder / "answers" / f"{row_id(row)}.npz"} for row in rows]


def append_row(folder: Path, row: Row, **answers: np.ndarray) -> None:
    """Add a run to a study: its answers first, then its line, whole, also where several processes write."""
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    if answers:
        final = folder / "answers" / f"{row_id(row)}.npz"
        part = final.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **answers)  # type: ignore[arg-type]
        part.replace(final)
    with (folder / "rows.jsonl").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run to make: a method at a compute, in a variant of it, on a dataset with a seed, tested on a split.

    `epochs` is the length of the training, where it is counted in epochs; `optimizer` is "" where nothing is trained.
    """

    study: str
    dataset: str
    method: str = "plain"
    compute: float = 1.0
    variant: str = ""
    frames: int = 8
    seed: int = 0
    optimizer: str = "muon"
    epochs: float | None = None
    scale: str = "small"
    split: str = "test"

    @property
    def folder(self) -> Path:
        return folder_of(self.study, self.scale, self.split)

    def is_in(self, rows: Iterable[Row]) -> bool:
        wanted = asdict(self)
        return any(all(row.get(key) == wanted[key] for key in KEY) for row in rows)

    def model(self, *, learned: bool = True) -> nn.Module:
        """Return the plain model of the seed on a synthetic dataset with the method put in, not yet tuned."""
        model = plain(self.seed, self.dataset, self.scale, self.frames)
        put_in(model, self.method, self.compute, self.variant, learned=learned)
        return model

    def row(self, model: nn.Module, predicted: np.ndarray, classes: np.ndarray, seconds: float, **more: Any) -> Row:
        """Return the row of a finished run; what it answered each clip is under "predicted" and "correct"."""
        correct = predicted == classes
        told = {key: value for key, value in asdict(self).items() if key not in ("scale", "split")}
        told |= dict(learned=any("merger" in name for name, _ in model.named_parameters()), macs=sttm.macs(model))
        told |= dict(top1=float(correct.mean()), clips=len(correct), split=self.split) | more
        told |= dict(seconds=round(seconds, 1), commit=commit(), machine=machine(device()))
        return told | dict(predicted=predicted.astype(np.int16), correct=correct)


def tuned(run: Run) -> Row:
    """Tune the model of a run and test it."""
    model = run.model()
    seconds = tune(model, run.dataset, run.seed, run.scale, run.frames)
    return tested(run, model, tuning_recipe(run.dataset, run.scale).steps, seconds)


def tested(run: Run, model: nn.Module, steps: int = 0, seconds: float = 0.0, **more: Any) -> Row:
    """Test the model of a run on a synthetic dataset."""
    clips = clips_of(run.dataset, run.split, run.scale)
    return run.row(model, predict(model, clips, run.frames), clips.classes.numpy(), seconds, steps=steps, **more)


def carry_out(runs: list[Run], work: Callable[[Run], Row], processes: int = 1, threads: int = 1) -> None:
    """Make the runs that are missing, each in a process with that many threads."""
    missing = [run for run in runs if not run.is_in(rows_of(run.study, run.scale, run.split))]
    print(f"{len(missing)} of {len(runs)} runs to make", flush=True)
    if processes == 1:
        torch.set_num_threads(threads)
        for run in missing:
            # Another process may have made it meanwhile.
            if not run.is_in(rows_of(run.study, run.scale, run.split)):
                _keep(run, work(run))
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        waiting = {pool.submit(work, run): run for run in missing}
        for done in as_completed(waiting):
            _keep(waiting[done], done.result())


def _keep(run: Run, row: Row) -> None:
    answers = {name: row.pop(name) for name in ("predicted", "correct")}
    append_row(run.folder, row, **answers)
    print(f"{row_id(row)}: top-1 {row['top1']:.4f} in {row['seconds']:.0f} s", flush=True)


# --- the command of a study -------------------------------------------------------------------------------------------


WHAT = {
    "run": "make the missing runs, and the table",
    "table": "write the table of the runs that are there",
    "config": "print the settings of one run from scratch, for sttm train",
}


def parser_of(
    doc: str | None, datasets: str, seeds: str = "0,1,2", what: Sequence[str] = ("run", "table")
) -> argparse.ArgumentParser:
    """Return the options that all studies have; `what` is what the command can do."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=what, help="; ".join(f"{name}: {WHAT[name]}" for name in what))
    parser.add_argument("--datasets", "--dataset", default=datasets, help="names, separated by commas")
    parser.add_argument("--methods", help="only these, separated by commas")
    parser.add_argument("--variants", help="only these, separated by commas")
    parser.add_argument("--compute", help="only these, separated by commas")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    return parser


def main(study: str, doc: str | None, entries: list[dict[str, Any]], work: Callable[[Run], Row],
         report: Callable[[str, str], None], datasets: str = "motion,scene") -> None:  # fmt: skip
    """Run the command of a study with fixed entries: the fields of a Run that tell them apart."""
    parser = parser_of(doc, datasets)
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    options = parser.parse_args()
    if options.what == "run":
        common = dict(study=study, scale=options.scale, split=options.split)
        seeds, datasets = [int(seed) for seed in options.seeds.split(",")], options.datasets.split(",")
        runs = [
            Run(**common, dataset=dataset, seed=seed, **entry)
            for seed, entry, dataset in product(seeds, entries, datasets)
        ]
        wanted = dict(method=options.methods, variant=options.variants, compute=options.compute)
        runs = [run for run in runs if all(_among(getattr(run, key), names) for key, names in wanted.items())]
        carry_out(runs, work, options.processes, options.threads)
    write_report(report, study, options.scale, options.split)


def write_report(report: Callable[[str, str], None], study: str, scale: str, split: str) -> None:
    """Write the table and the plot of a study, and put the table on the pages that show it."""
    report(scale, split)
    if (scale, split) == ("small", "test"):
        for table in sorted(folder_of(study).glob("*.md")):
            show_in_docs(table)


def _among(value: str | float, names: str | None) -> bool:
    return names is None or (f"{value:g}" if isinstance(value, float) else value) in names.split(",")
