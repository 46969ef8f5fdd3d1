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

import sttm
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

Model = Annotated[str | None, typer.Option(metavar="M", help="Bundled name, folder or hub id; bundled if left out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Batch = Annotated[int, typer.Option(min=1, help="Clips that go through the model at once.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto is CUDA where there is some.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed makes the same videos.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(sttm.__version__)
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Holds the one option that belongs to no command."""


def main() -> None:
    """Run the command line; a mistake that the user can mend is one sentence on stderr and exit code 2."""
    try:
        app()
    except SttmError as error:
        _complain(str(error))
    except OSError as error:  # a folder that may not be written, a full disk
        _complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    except ImportError as error:  # a broken installation
        _complain(f"{str(error).splitlines()[0]}; sttm doctor tells what is broken and how to mend it.")
    sys.exit(2)  # a command that went well has left by SystemExit


@app.command(epilog="Example:  sttm predict clips/ 'more/*.mp4' --compute 0.62 --json")
def predict(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Files, folders, quoted patterns.")],
    model: Model = None,
    compute: Annotated[str | None, typer.Option(metavar="C", help="Part of the multiply-adds to spend.")] = None,
    method: Annotated[str | None, typer.Option(help="How to merge.", show_default="sttm")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels to name for each clip.")] = 5,
    views: Annotated[str, typer.Option(metavar="TxS", help="Views in time, crops in space, to average.")] = "1x1",
    batch_size: Batch = 8,
    device: Device = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    as_json: Json = False,
) -> None:
    """Say what happens in video files; a file that cannot be read is named, and the others go on."""
    fraction = None if compute is None else _fraction(compute)
    if method is not None and fraction is None:
        raise SttmError(f"--method {method} says how to merge but not how much: add, say, --compute 0.62.")
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
    for family in FAMILIES:
        about = f"family {family.family}: {', '.join(family.classes)}"
        rows.append({"model": family.example, "kind": "hub id", "about": about})
    _print_rows("Models", rows, as_json=rows if as_json else None)


@app.command(epilog="Example:  sttm doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what is installed, what works, and how to mend what does not."""
    from sttm.engines.doctor import examine

    with Console(stderr=True).status("looking around"):
        rows = [asdict(finding) for finding in examine()]
    _print_rows("Doctor", rows, as_json=rows if as_json else None)
    raise typer.Exit(int(any(row["needed"] and row["status"] == "broken" for row in rows)))


@app.command(epilog="Example:  sttm synth videos --kind motion --clips 1000 --seed 0")
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    kind: Annotated[Literal["motion", "scene"], typer.Option(help="What tells classes apart.")] = "motion",
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
    compute: Annotated[str, typer.Option(metavar="C,D", help="Parts of multiply-adds.")] = "1,0.8,0.62,0.4",
    batch: Batch = 1,
    dtype: Annotated[str, typer.Option(metavar="T,U", help="fp32, bf16, or both.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each model is timed, in turn.")] = 10,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the plain and the merged model, turn by turn in one process."""
    computes = [_fraction(text) for text in compute.split(",")]

    from sttm import models as floor
    from sttm.engines import bench as engine

    result = engine.run(
        model or [floor.DEFAULT],
        _list(methods),
        computes,
        batch=batch,
        dtypes=_list(dtype),
        rounds=rounds,
        device=_device(device).type,
    )
    _print_rows(f"Bench on {result['machine']}", result["rows"], as_json=result if as_json else None)


@app.command(epilog="Example:  sttm demo")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For videos and report.html.")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=1, help="Videos to make and classify.")] = 360,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Make videos, classify them with and without merging, and write a report with pictures; all offline."""
    from sttm.engines import demo as engine

    result = engine.run(folder, clips=clips, seed=seed)
    if as_json:
        print(json.dumps(result))
    else:
        _wide_console().print(engine.table(result))
        print(f"The pictures are in {result['report']}")


# --- what the user typed ------------------------------------------------------------------------------------


def _fraction(text: str) -> float:
    """Read a compute; the plug checks it again, but only after seconds of loading."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise SttmError(f"compute={text} is not above 0 and at most 1: give the part to keep, such as 0.62.")
    return value


def _views(text: str) -> tuple[int, int]:
    """Read '5x3' as five temporal views times three spatial crops."""
    temporal, _, spatial = text.partition("x")
    if not temporal.isdecimal() or int(temporal) < 1 or spatial not in ("1", "3"):
        raise SttmError(f"views={text} is not TxS: give 1 or more in time and 1 or 3 in space, such as 5x3.")
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
    """Bring the model to what the user wants to spend; what it then costs, relative to its plain self."""
    from sttm.plugging import plug

    own = plug.plan_of(network).compute if plug.is_merged(network) else 1.0
    if compute is None or (method == "sttm" and own <= compute < own + 0.01 and plug.is_merged(network)):
        return own
    if plug.is_merged(network):
        _complain(f"the mergers that the model came with (compute {own:.3f}) make way for --compute {compute}.")
        plug.remove(network)
    return plug.apply(network, compute=compute, method=method).compute


# --- what the user sees -------------------------------------------------------------------------------------


def _complain(sentence: str) -> None:
    print(f"sttm: {sentence}", file=sys.stderr)


def _report_predictions(records: Iterable[Mapping[str, Any]], total: int, *, as_json: bool) -> int:
    """Print records as they come, errors and warnings on stderr too; the exit code."""
    failed = 0
    shown = sys.stderr.isatty() and not (as_json and sys.stdout.isatty())  # no bar through lines of JSON
    with _progress(records, total, shown=shown) as watched:
        for record in watched:
            path, error = _printable(record["path"]), record.get("error")
            for warning in record.get("warnings", ()):
                _complain(f"warning: {path}: {warning}")
            if error is not None:
                failed += 1
                _complain(error if path in error else f"{path}: {error}")
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


def _print_rows(title: str, rows: list[dict[str, Any]], *, as_json: object = None) -> None:
    """Print records as a table with a column for each of their keys, or some JSON in its place."""
    if as_json is not None:
        print(json.dumps(as_json))
        return
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        table.add_column(key.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    _wide_console().print(table)


def _wide_console() -> Console:
    """A console for tables: as wide as the terminal, or wide enough for long rows in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160)


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
