"""Protocols that train a whole schedule with the method in from the first step: from scratch, and fine-tuning.

The recipe: a small VideoMAE of 16 x 48 x 48 clips (288 tokens, 4 blocks, width 64), 16 epochs of batches of 64, Muon
0.02 for the matrices of the blocks and AdamW 2e-3 for the rest, label smoothing 0.1, warm-up over a tenth of the steps
and half a cosine. Plain and every method get the same steps. The validation split is read after every epoch, the test
split once, at the end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from harness.controls import CONTROLS, control_shape
from harness.data import CACHE, DATASETS, MAX_SHIFT, ClipSet, clip_set, data_settings, dataset_named, resized_edge
from harness.runs import Row, Run, carry_out, folder_of, parser_of, row_id, rows_of, write_report
from harness.tables import (
    LEGEND,
    Group,
    difference,
    groups,
    markdown,
    origin,
    plot,
    plot_curves,
    plot_training,
    training_macs,
)
from harness.training import MUON_WEIGHT_DECAY, OPTIMIZERS, Recipe, Shape, fit, new_model, predict
from harness.variants import NEEDS_TRAINING, put_in
from sttm.config.reading import dump
from sttm.config.settings import Settings
from sttm.errors import SttmError

SHAPE = Shape(frames=16, edge=48, patch=8, width=64, depth=4, heads=4)
EPOCHS, BATCH, SMOOTHING = 16, 64, 0.1
#: The variant of the merger whose motion feature is trained from this share of the steps on.
LATE, MOTION_START = "late-motion", 0.5
#: The variant that `sttm train` makes by default: a checkpoint's new motion feature waits, one from scratch does not.
DEFAULTS = {"scratch": "", "finetune": LATE}
#: What tables call the variant "", which trains the motion feature from the first step, where it is not the default.
EARLY = "early-motion"
#: Peak learning rates of Muon and of AdamW beside it; of AdamW alone the second is used.
LRS = {"muon": (0.02, 2e-3), "adamw": (0.02, 1e-3)}
HEADS = (
    "method",
    "variant",
    "epochs",
    "GMACs",
    "training TMACs",
    "seeds",
    "top-1 (%)",
    "delta vs plain",
    "STTM vs method",
)


@dataclass(frozen=True)
class Protocol:
    """A study of that kind: its name, its doc, and the model that a run of so many classes starts from."""

    study: str
    doc: str | None
    start: Callable[[int, int, Shape], Any]
    """From (seed, classes, shape)."""


def from_scratch(seed: int, classes: int, shape: Shape) -> Any:
    """Return a model with new weights."""
    torch.manual_seed(seed)
    return new_model(shape, classes)


def shape_of(run: Run) -> Shape:
    """Return the shape of a run's model and clips: SHAPE, or that of a control."""
    return control_shape(run.method, SHAPE, run.compute) if run.method in CONTROLS else SHAPE


def recipe_of(run: Run, clips: int) -> Recipe:
    """Return the recipe of a run on so many training clips."""
    assert run.epochs is not None
    steps = max(1, round(run.epochs * (clips // BATCH)))
    start = MOTION_START if run.variant == LATE else 0.0
    return Recipe(steps, min(BATCH, clips), LRS[run.optimizer], run.optimizer, SMOOTHING, start)


def work(protocol: Protocol, run: Run, limit: int | None = None) -> Row:
    """Train one model and test it; `limit` takes the first clips of each split only, for trials."""
    shape = shape_of(run)
    data = {split: clip_set(run.dataset, split, shape.edge) for split in ("train", "validation", run.split)}
    data = {split: clips.head(limit) if limit else clips for split, clips in data.items()}
    model = protocol.start(run.seed, len(data["train"].names), shape)
    if run.method not in CONTROLS:
        put_in(model, run.method, run.compute, run.variant, learned=True)
    recipe, curve, validating = recipe_of(run, len(data["train"])), [], 0.0
    per_epoch = max(1, len(data["train"]) // recipe.batch)

    def after_step(step: int) -> None:
        nonlocal validating
        if (step + 1) % per_epoch == 0 or step + 1 == recipe.steps:
            started = time.perf_counter()
            curve.append(round(_top1(model, data["validation"], shape.frames), 4))
            print(f"{run.method} {run.compute:g}: epoch {len(curve)}, validation {curve[-1]:.3f}", flush=True)
            validating += time.perf_counter() - started

    seconds = fit(model, data["train"], shape.frames, run.seed, recipe, after_step=after_step) - validating
    if run.method == "plain" and not run.variant and not limit:
        keep_plain(model, run)
    clips = data[run.split]
    predicted = predict(model, clips, shape.frames)
    return run.row(
        model, predicted, clips.classes.numpy(), seconds, steps=recipe.steps, batch=recipe.batch, curve=curve
    )


def plain_file(study: str, dataset: str, seed: int, epochs: float | None) -> Path:
    """Return where the trained plain model of a seed is kept, for studies that start from it."""
    return CACHE / "models" / f"{study}-{dataset}-{epochs or 0:g}e-{seed}.safetensors"


def keep_plain(model: Any, run: Run) -> None:
    """Keep the weights of a trained plain model."""
    path = plain_file(run.study, run.dataset, run.seed, run.epochs)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, path)


def _top1(model: Any, clips: ClipSet, frames: int) -> float:
    correct = predict(model, clips, frames) == clips.classes.numpy()
    return float(np.mean(correct))


def settings_of(run: Run) -> Settings:
    """Return the training config of a run from scratch, for `sttm train`.

    What it cannot say: that what a shift moves out of a picture comes in on its other side (there a shift moves the
    crop), and positions of t, y and x (`harness.training.positions`; its model has VideoMAE's own, of the token's
    number).

    Raises:
        SttmError: for a dataset whose clips are less their mean picture, a control, or a variant without a setting.
    """
    dataset, variants = dataset_named(run.dataset), {"": {}, LATE: dict(motion_start=MOTION_START)}
    variants |= {"no-motion": dict(motion=False), "motion": dict(motion=True)}
    if dataset.still_removed or run.method in CONTROLS or run.variant not in variants:
        asked = "-".join(filter(None, (run.dataset, run.method, run.variant)))
        raise SttmError(f"sttm train has no settings for {asked}; choose another dataset, method or variant")
    clips = clip_set(run.dataset, "train", SHAPE.edge)
    mean, std = ((levels / 255).flatten().expand(3).tolist() for levels in (clips.mean, clips.std))
    recipe: dict[str, Any] = dict(name=run.optimizer, lr=LRS[run.optimizer][1], epochs=run.epochs, batch_size=BATCH,
                                  smoothing=SMOOTHING, clip_norm=1.0, betas=(0.9, 0.98), weight_decay=0.0,
                                  min_lr=0.0)  # fmt: skip
    if run.optimizer == "muon":
        recipe |= dict(muon_lr=LRS["muon"][0], muon_weight_decay=MUON_WEIGHT_DECAY)
    config = dict(image_size=SHAPE.edge, patch_size=SHAPE.patch, hidden_size=SHAPE.width, tubelet_size=2)
    config |= dict(num_hidden_layers=SHAPE.depth, num_attention_heads=SHAPE.heads, intermediate_size=4 * SHAPE.width)
    merging: dict[str, Any] = dict(compute=run.compute, learned=run.method in NEEDS_TRAINING, **variants[run.variant])
    merging |= {} if run.method == "plain" else dict(method=run.method)
    return Settings.model_validate(dict(
        data=data_settings(run.dataset).model_dump() | dict(workers=0, cache_gib=3),
        model=dict(family="videomae", config=config, frames=run.frames, attention="eager",
                   resize=resized_edge(SHAPE.edge, dataset.middle), mean=mean, std=std),
        merging=merging,
        augment=dict(crop="centre", shift=MAX_SHIFT, flip=0.5 * dataset.mirror),
        optimizer=recipe,
        run=dict(output=CACHE / "runs" / row_id(asdict(run)), seed=run.seed, precision="bf16", trackers=()),
    ))  # fmt: skip


# --- the command ------------------------------------------------------------------------------------------------------


def main(protocol: Protocol) -> None:
    """Run the command of a protocol."""
    parser = parser_of(protocol.doc, "grid_words_lips", what=("run", "table", "config"))
    parser.set_defaults(methods="plain,sttm", compute="0.35", variants="")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="48 is three times the default")
    parser.add_argument("--limit", type=int, help="take so many clips of each split only, and write no row: a trial")
    options = parser.parse_args()
    runs = runs_of(protocol.study, options)
    if options.what == "config":
        if protocol.study != "scratch" or len(runs) != 1:
            raise SystemExit("config prints the settings of one run of scratch.py; give one method, one seed and so on")
        print(dump(settings_of(runs[0])), end="")
        return
    if options.what == "run":
        if options.limit:
            torch.set_num_threads(options.threads)
            for run in runs:
                row = work(protocol, run, options.limit)
                print({key: row[key] for key in ("method", "compute", "macs", "top1", "steps", "seconds", "curve")})
            return
        carry_out(runs, partial(work, protocol), options.processes, options.threads)
    write_report(partial(report, protocol.study), protocol.study, "small", options.split)


def runs_of(study: str, options: argparse.Namespace) -> list[Run]:
    """Return the runs that the options ask for, seed by seed; plain and controls have no variants, plain no compute.

    The variant "motion" gives plain and baselines the merger's motion feature, where the merger has its merges;
    "late-motion" trains that of the merger from MOTION_START of the steps on.
    """
    common = dict(study=study, frames=SHAPE.frames, optimizer=options.optimizer, epochs=options.epochs)
    common |= dict(split=options.split)
    asked = {key: getattr(options, key).split(",") for key in ("datasets", "methods", "compute", "variants", "seeds")}
    runs = []
    for seed, dataset, method in product(asked["seeds"], asked["datasets"], asked["methods"]):
        base = Run(dataset=dataset, method=method, seed=int(seed), **common)
        variants = [name for name in asked["variants"] if name == "" or (name == "motion") != (method == "sttm")]
        if method == "plain":
            runs += [base] * ("" in variants)
            runs += [
                replace(base, variant="motion", compute=float(c)) for c in asked["compute"] if "motion" in variants
            ]
            continue
        variants = [""] if method in CONTROLS else variants
        runs += [replace(base, compute=float(c), variant=variant) for c, variant in product(asked["compute"], variants)]
    return runs


def report(study: str, scale: str, split: str) -> None:
    """Write the table and the plots of a protocol."""
    rows, folder = rows_of(study, scale, split), folder_of(study, scale, split)
    if not rows:
        return
    order = list(DATASETS)
    rows.sort(key=lambda row: order.index(row["dataset"]))
    of_sets = {dataset: group.rows for (dataset,), group in groups(rows, "dataset").items()}
    for comparison, table, curves in ((False, "table.md", "curves.png"), (True, "preparations.md", "preparations.png")):
        chosen = [
            row for name, of_set in of_sets.items() if dataset_named(name).comparison == comparison for row in of_set
        ]
        if chosen:
            (folder / table).write_text(_tables(study, chosen), encoding="utf-8")
            plot_curves(folder / curves, chosen)
    default = DEFAULTS[study]
    rows = [row for row in rows if not dataset_named(row["dataset"]).comparison]
    main = [row for row in rows if row["variant"] == (default if row["method"] == "sttm" else "")]
    main = [row for row in main if (row["optimizer"], row["epochs"]) == ("muon", EPOCHS)]
    if main:
        plot(folder / "plot.png", main)
    plot_training(folder / "training.png", rows)


def _tables(study: str, rows: list[Row]) -> str:
    sections = [
        "Plain and every method trained by the same recipe and steps, the method in from the first step. Bold: STTM as "
        "`sttm train` does by default.",
        LEGEND,
        origin(rows, f"python studies/{study}.py run"),
    ]
    for (dataset, optimizer), of_set in groups(rows, "dataset", "optimizer").items():
        found = groups(of_set.rows, "method", "variant", "epochs")
        plain = {epochs: group for (*name, epochs), group in found.items() if name == ["plain", ""]}
        for (compute,), at_compute in groups(of_set.rows, "compute").items():
            if compute < 1 or len({row["compute"] for row in of_set.rows}) == 1:
                sections += [
                    f"### {dataset}, {optimizer}, compute {compute:g}",
                    _table(at_compute, plain, DEFAULTS[study]),
                ]
    return "\n\n".join(sections) + "\n"


def _table(at_compute: Group, plain: dict[float, Group], default: str) -> str:
    found = groups(at_compute.rows, "method", "variant", "epochs")
    lines = [_line(("plain", "", epochs), group, plain, None, default) for epochs, group in plain.items()]
    for key, group in sorted(found.items(), key=lambda entry: (entry[0][2], -entry[1].top1)):
        if key[:2] != ("plain", ""):
            ours = found.get(("sttm", default, key[2])) if key[:2] != ("sttm", default) else None
            lines.append(_line(key, group, plain, ours, default))
    return markdown(HEADS, lines)


def _line(
    key: tuple[str, str, float], group: Group, plain: dict[float, Group], ours: Group | None, default: str
) -> tuple[str, ...]:
    method, variant, epochs = key
    by_default = (method, variant) == ("sttm", default)
    shown = EARLY if (method, variant) == ("sttm", "") and default else variant
    training = training_macs(group.rows[0]) / 1e12
    delta = difference(group, plain[epochs]) if epochs in plain and (method, variant) != ("plain", "") else None
    versus = ours and difference(ours, group)
    return (f"**{method}**" if by_default else method, shown, f"{epochs:g}",
            f"{group.gmacs:.4f}", f"{training:.0f}", str(len(group.rows)), group.shown,
            delta.shown if delta else "", versus.shown if versus else "")  # fmt: skip
