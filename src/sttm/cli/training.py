"""The commands that train, evaluate and check data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sttm.cli.app import app
from sttm.cli.options import Json, Sets
from sttm.cli.printing import complain, print_rows, progress

if TYPE_CHECKING:
    from sttm.config.settings import ModelSettings
    from sttm.data.video.read import Sampling

data = typer.Typer(help="Look after data sets.", no_args_is_help=True)
app.add_typer(data, name="data")
_JSON_ONLY = ("fps", "direction_sensitive")  # the table is wide enough without them


@app.command(epilog="Example:  sttm train configs/ut_interaction.yaml --set merging.compute=0.62")
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; configs/ has many.")],
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a model, plain or merged; where its run stopped, it goes on. Under torchrun, on many processes."""
    from sttm.config import load

    settings = load(config, overrides or ())  # before torch is there: a slip in the config is told at once
    from sttm.training import run as engine

    try:
        engine.train(settings, report=_print_record if as_json else _tell)
    except engine.Stopped as stopped:
        complain(f"stopped at step {stopped.step}, saved in {stopped.checkpoint}; the same command goes on from there.")
        raise typer.Exit(128 + stopped.signal) from stopped


@app.command("eval", epilog="Example:  sttm eval configs/mine.yaml --views 2x3 --out results/")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="CONFIG|MODEL", help="A run's config, or a name, folder, hub id.")],
    data: Annotated[Path | None, typer.Option(metavar="LIST", help="List of videos, or a folder a class.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where its paths start.", show_default="beside it")] = None,
    layout: Annotated[str, typer.Option(help="How to read it.")] = "auto",
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Names of its classes.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the config, or in the list.", show_default="test")] = None,
    overrides: Sets = None,
    compute: Annotated[str | None, typer.Option(metavar="C", help="Part of the multiply-adds to spend.")] = None,
    method: Annotated[str | None, typer.Option(help="How to merge.", show_default="sttm")] = None,
    views: Annotated[str | None, typer.Option(metavar="TxS", help="In time x crops.", show_default="1x1")] = None,
    average: Annotated[Literal["probabilities", "logits"] | None, typer.Option(help="Over views.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Views at once.", show_default="8")] = None,
    dtype: Annotated[Literal["fp32", "bf16"] | None, typer.Option(show_default="fp32")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(show_default="auto")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode.", show_default="cores - 1")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For tables, predictions, a picture.")] = None,
    predictions: Annotated[Literal["csv", "parquet"], typer.Option(help="Their format in --out.")] = "csv",
    as_json: Json = False,
) -> None:
    """Measure accuracy on a list of videos; those that cannot be read are named, and not counted."""
    from sttm.cli.testing import Request, run

    request = Request(
        target, overrides or (), data, root, layout, labels, split, compute, method, views, average, batch_size,
        dtype, device, workers, out, predictions,
    )  # fmt: skip
    raise typer.Exit(run(request, as_json=as_json))


@data.command(epilog="Example:  sttm data check configs/ut_interaction.yaml --decode")
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; its data section is checked.")],
    overrides: Sets = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode a clip of each too: slower, finds more.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Videos looked at side by side.")] = 8,
    as_json: Json = False,
) -> None:
    """Look at every video of a data set before a long run: what is missing, unreadable, short or in two splits."""
    from sttm.config import load

    settings = load(config, overrides or ())
    from sttm.data.datasets import check as engine

    def with_bar(checked: Iterable[Any], total: int) -> Iterator[Any]:
        with progress(checked, total, shown=sys.stderr.isatty()) as watched:
            yield from watched

    sampling = sampling_of(settings.model)
    report = engine.check(settings.data, sampling=sampling, decode=decode, threads=threads, progress=with_bar)
    narrow = [{key: value for key, value in row.items() if key not in _JSON_ONLY} for row in report["splits"]]
    rows = [{key: len(value) if isinstance(value, list) else value for key, value in row.items()} for row in narrow]
    print_rows(f"Data of {config} (min / median / max)", rows, as_json=report if as_json else None)
    for row in report["splits"]:
        _list_once(row["missing"], f"of {row['split']} missing")
        _list_once([entry["error"] for entry in row["unreadable"]], f"of {row['split']} unreadable")
        for entry in row["remarks"][:10]:
            complain(f"warning: {entry['path']}: {entry['remark']}")
    for warning in report["warnings"]:
        complain(f"warning: {warning}.")
    raise typer.Exit(int(not report["ok"]))


def sampling_of(model: ModelSettings) -> Sampling | None:
    """Return the frames that a model takes of a video, or None where only a download would tell."""
    from sttm import models
    from sttm.data.transforms.preprocess import Preprocess
    from sttm.data.transforms.processor_config import FAMILIES
    from sttm.data.video.read import Sampling

    own: Sampling | None = None
    if model.start is not None and (model.start in models.BUNDLED or Path(model.start).is_dir()):
        own = Preprocess.from_folder(models.resolve(model.start)).sampling
    elif model.family in FAMILIES:
        family = FAMILIES[model.family]
        own = Sampling(int(model.config.get(family.num_frames_key) or family.num_frames))
    frames = model.frames or (own.num_frames if own else None)
    mode = model.sampling or (own.mode if own else "uniform")
    stride = model.stride or (own.stride if own and mode == "dense" else 1)
    return None if frames is None else Sampling(frames, mode, stride)


def _print_record(record: Mapping[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def _tell(record: Mapping[str, Any]) -> None:
    """One line for people of each record of a run; what is amiss goes to stderr."""
    match record.get("event"):
        case "start":
            print(record["plan"])
            again = f", going on after step {record['resumed_at']}" if record["resumed_at"] is not None else ""
            print(
                f"{record['clips']:,} clips of {record['classes']} classes, {record['steps']:,} steps{again}",
                flush=True,
            )
            _list_once(record["missing"], "missing")
        case "evaluation":
            print(f"step {record['step']:,}: top-1 on validation {record['validation_top1']:.1%}", flush=True)
        case "end":
            _list_once([f"{path}: {reason}" for path, reason in record["unreadable"].items()], "unreadable")
            for split in ("validation", "test"):
                if split in record:
                    figures = record[split]
                    low, high = figures["top1_interval"]
                    clips = f"{low:.1%} to {high:.1%}, {figures['clips']:,} clips"
                    print(f"{split}: top-1 {figures['top1']:.1%} ({clips})")
            print(f"The model is in {record['folder']}/model")
        case _:
            waiting = f", {record['waiting']:.0%} of the time waiting for data" if record["waiting"] > 0.1 else ""
            print(
                f"step {record['step']:,}/{record['steps']:,}: loss {record['loss']:.4f}, rate {record['lr']:.2e}, "
                f"{record['clips_per_s']:.1f} clips/s{waiting}",
                flush=True,
            )


def _list_once(items: Sequence[str], what: str) -> None:
    if items:
        shown = "; ".join(items[:10]) + (f"; and {len(items) - 10} more" if len(items) > 10 else "")
        complain(f"{len(items)} video{'s' * (len(items) != 1)} {what}, left out: {shown}")
