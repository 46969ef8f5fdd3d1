"""The command line: each command reads its options, calls one engine, and prints what came back.

torch and transformers are imported inside the commands, so that `sttm --help` answers at once.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sttm.errors import SttmError

if TYPE_CHECKING:
    import torch
    from torch import nn

app = typer.Typer(
    help="Spatial-temporal token merging: a video transformer that computes less and sees as much.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # main() below has the last word on errors
)

Model = Annotated[
    str | None,
    typer.Option(
        metavar="M", help="A bundled model, a folder, or a hub id.", show_default="the bundled model"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Batch = Annotated[int, typer.Option(min=1, help="Clips that go through the model at once.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed makes the same videos.")]


def main() -> None:
    """Run the command line; a mistake that the user can mend is one sentence on stderr and exit code 2."""
    try:
        app()
    except SttmError as error:
        _complain(str(error))
    except OSError as error:  # a folder that may not be written, a full disk
        _complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    sys.exit(2)  # a command that went well has left by SystemExit


@app.command(epilog="Example:  sttm predict clips/ 'more/*.mp4' --compute 0.62 --json")
def predict(
    clips: Annotated[
        list[str], typer.Argument(metavar="CLIP...", help="Files, folders, or quoted patterns.")
    ],
    model: Model = None,
    compute: Annotated[
        str | None,
        typer.Option(metavar="C", help="Part of the plain model's multiply-adds to spend: 0 < C <= 1."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="How to merge.", show_default="sttm")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels to name for each clip.")] = 5,
    views: Annotated[
        str, typer.Option(metavar="TxS", help="Temporal views times spatial crops to average.")
    ] = "1x1",
    batch_size: Batch = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    as_json: Json = False,
) -> None:
    """Say what happens in video files; a file that cannot be read is named, and the others go on."""
    fraction = None if compute is None else _fraction(compute)
    if method is not None and fraction is None:
        raise SttmError(
            f"--method {method} says how to merge but not how much: add --compute, such as --compute 0.62."
        )
    temporal_and_spatial = _views(views)

    import torch

    from sttm import models
    from sttm.data.preprocess import Preprocess
    from sttm.engines import predict as engine

    name = model or models.DEFAULT
    preprocess = Preprocess.from_folder(models.resolve(name))
    network = models.load(name).to(_device(device))
    spent = _merge(network, fraction, method or "sttm")
    sources = engine.find_videos(clips)
    records = engine.predict(
        sources,
        network,
        preprocess,
        top_k=top_k,
        views=temporal_and_spatial,
        batch_size=batch_size,
        compute=spent,
        dtype=torch.float32 if dtype == "fp32" else torch.bfloat16,
    )
    raise typer.Exit(_report_predictions(records, len(sources), as_json=as_json))


@app.command(epilog="Example:  sttm models --json")
def models(as_json: Json = False) -> None:
    """List the bundled models, and the families of models that can be merged."""
    from sttm import models as floor
    from sttm.backbones import FAMILIES

    rows = [{"model": name, "kind": "bundled", "about": about} for name, about in floor.BUNDLED.items()]
    rows += [
        {"model": family.example, "kind": "hub id", "about": f"of the family {family.family}"}
        for family in FAMILIES
    ]
    _print_rows("Models", rows, as_json=as_json)


@app.command(epilog="Example:  sttm doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what is installed, what works, and how to mend what does not."""
    from sttm.engines.doctor import examine

    with Console(stderr=True).status("looking around"):
        findings = list(examine())
    _print_rows("Doctor", [asdict(finding) for finding in findings], as_json=as_json)
    raise typer.Exit(int(any(finding.needed and finding.status == "broken" for finding in findings)))


@app.command(epilog="Example:  sttm synth videos --kind motion --clips 1000 --seed 0")
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    kind: Annotated[
        Literal["motion", "scene"], typer.Option(help="What tells the classes apart.")
    ] = "motion",
    clips: Annotated[int, typer.Option(min=1, help="Videos to make.")] = 1000,
    seed: Seed = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each video.")] = 16,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 112,
    workers: Annotated[int | None, typer.Option(min=1, show_default="one a core", help="Processes.")] = None,
) -> None:
    """Make labelled videos: real mp4 files whose classes are known."""
    from sttm.data.synth import SynthSettings, make

    settings = SynthSettings(kind=kind, clips=clips, seed=seed, frames=frames, size=size)
    make(folder, settings, workers=workers, progress=sys.stderr.isatty())


@app.command(epilog="Example:  sttm bench --methods sttm --compute 1,0.62 --dtype fp32,bf16")
def bench(
    model: Annotated[list[str] | None, typer.Option(metavar="M", help="May be given several times.")] = None,
    methods: Annotated[str, typer.Option(metavar="A,B", help="Ways to merge.")] = "sttm",
    compute: Annotated[
        str, typer.Option(metavar="C,D", help="Parts of the multiply-adds.")
    ] = "1,0.8,0.62,0.4",
    batch: Batch = 1,
    dtype: Annotated[str, typer.Option(metavar="T,U", help="fp32, bf16, or both.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each model is timed, in turn.")] = 10,
    as_json: Json = False,
) -> None:
    """Time the plain and the merged model, turn by turn in one process."""
    computes = [_fraction(text) for text in _list(compute)]

    from sttm import models as floor
    from sttm.engines import bench as engine

    result = engine.run(
        model or [floor.DEFAULT], _list(methods), computes, batch=batch, dtypes=_list(dtype), rounds=rounds
    )
    if as_json:
        print(json.dumps(result))
    else:
        _print_rows(f"Bench on {result['machine']}", result["rows"])


@app.command(epilog="Example:  sttm demo")
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the videos and report.html go.")
    ] = Path("demo"),
    clips: Annotated[int, typer.Option(min=1, help="Videos to make and classify.")] = 200,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make videos, classify them with and without merging, and write a report with pictures; all offline."""
    from sttm.engines import demo as engine

    result = engine.run(folder, clips=clips, seed=seed)
    if as_json:
        print(json.dumps(result))
    else:
        _print_rows("Demo", result["rows"])
        print(f"The pictures are in {result['report']}")


# --- what the user typed ------------------------------------------------------------------------------------


def _fraction(text: str) -> float:
    """Read a compute; the plug checks it again, but only after seconds of loading."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise SttmError(
            f"compute={text} is not above 0 and at most 1: give the part of the cost to keep, such as 0.62."
        )
    return value


def _views(text: str) -> tuple[int, int]:
    """Read '5x3' as five temporal views times three spatial crops."""
    temporal, _, spatial = text.lower().partition("x")
    if not (temporal.isdecimal() and spatial.isdecimal() and int(temporal) and int(spatial)):
        raise SttmError(f"views={text} is not TxS: give temporal views times spatial crops, such as 5x3.")
    return int(temporal), int(spatial)


def _list(text: str) -> list[str]:
    """Read 'a, b' as two names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise SttmError("device=cuda, but torch sees no CUDA device: use --device cpu, or see sttm doctor.")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def _merge(network: "nn.Module", compute: float | None, method: str) -> float:
    """Put mergers in if the user asked for it; what the model then costs, relative to its plain self."""
    from sttm.plugging import plug

    if compute is not None:
        return plug.apply(network, compute=compute, method=method).compute
    return plug.plan_of(network).compute if plug.is_merged(network) else 1.0


# --- what the user sees -------------------------------------------------------------------------------------


def _complain(sentence: str) -> None:
    print(f"sttm: {sentence}", file=sys.stderr)


def _report_predictions(records: Iterable[Mapping[str, Any]], total: int, *, as_json: bool) -> int:
    """Print records as they come, errors and warnings on stderr too; the exit code."""
    failed = 0
    with _progress(
        records, total, shown=sys.stderr.isatty() and not (as_json and sys.stdout.isatty())
    ) as shown:
        for record in shown:
            path, error = _printable(record["path"]), record.get("error")
            for complaint in (error, *record.get("warnings", ())):
                if complaint:
                    _complain(complaint if path in complaint else f"{path}: {complaint}")
            failed += error is not None
            if as_json:
                print(json.dumps(record), flush=True)
            elif error is None:
                guesses = [f"{guess['score']:8.1%}  {guess['label']}" for guess in record["predictions"]]
                print(path, *guesses, sep="\n", flush=True)
    if failed:
        _complain(f"{failed} of {total} could not be classified.")
    return int(failed > 0)


@contextmanager
def _progress(items: Iterable[Any], total: int, *, shown: bool) -> Iterator[Iterable[Any]]:
    """Draw a bar on stderr while the items are taken; stdout is left alone unless it is the same terminal."""
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console, same = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, disable=not shown, redirect_stdout=same) as bar:
        yield bar.track(items, total=total)


def _printable(path: str) -> str:
    """A path as any terminal can show it, though file names may hold bytes that are no text."""
    return os.fsencode(path).decode("utf-8", "replace")


def _print_rows(title: str, rows: list[dict[str, Any]], *, as_json: bool = False) -> None:
    """Print records that share their keys, as JSON or as a table with a column for each key."""
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        table.add_column(key.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console = Console()
    console.print(table, width=None if console.is_terminal else 160)  # a pipe has no width: let rows be long


def _cell(value: Any) -> str:
    """One value of a table, as people write it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case dict():
            return " / ".join(map(_cell, value.values()))
        case None:
            return "-"
        case _:
            return str(value)
