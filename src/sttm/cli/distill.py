"""`sttm distill`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm.cli.app import app
from sttm.cli.options import Format, Json, Method, Root, Sets, read_compute
from sttm.cli.printing import complain, warn
from sttm.cli.progress import progress
from sttm.cli.train import StepCount, print_record

#: A divergence from plain that is so many times as large as before is no rounding.
WORSE = 1.05


# Over 40 lines: most are the options.
@app.command(epilog="Example:  sttm distill my-model --data videos/ --compute 0.3 --minutes 10 -o distilled")
def distill(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub id; plain or merged.")],
    data: Annotated[Path, typer.Option(metavar="D", help="Folder of videos, or an annotation list; without labels.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="For the model, and its run.")],
    compute: Annotated[
        str | None, typer.Option(metavar="C", help="Share of the multiply-adds.", show_default="as MODEL")
    ] = None,
    method: Method = None,
    learned: Annotated[bool, typer.Option(help="Give the mergers their trainable parts.")] = True,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the run.", show_default="300")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Or its length in minutes.")] = None,
    lr: Annotated[float, typer.Option(min=1e-9, help="Peak learning rate.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips of one step.")] = 16,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the distillation loss.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    root: Root = None,
    format: Format = "auto",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Adapt a merged model without labels. Its plain self teaches it on your videos; resumes a run that stopped."""
    share = None if compute is None else read_compute(compute)

    from sttm.training.distill import Distillation
    from sttm.training.distill import distill as run
    from sttm.training.signals import Stopped

    wanted = Distillation(
        model, data, out, root, format, share, method, learned, steps, minutes, lr, batch_size, temperature, seed,
        overrides or (),
    )  # fmt: skip
    try:
        # no bar between lines of JSON on a terminal
        with progress("steps", shown=not (as_json and sys.stdout.isatty())) as advance:
            count = StepCount(advance)

            def report(record: Mapping[str, Any]) -> None:
                print(json.dumps(record), flush=True) if as_json else _print(record)
                count(record)

            outcome = run(wanted, report)
    except Stopped as stopped:
        complain(f"stopped at step {stopped.step}, saved in {stopped.checkpoint}; the same command resumes the run")
        raise typer.Exit(128 + stopped.signal) from stopped
    if outcome["after"]["kl"] > WORSE * outcome["before"]["kl"]:
        warn("the model answers less like its plain self than before; give a lower --lr, or more videos")
    raise typer.Exit(int(bool(outcome["unreadable"])))


def _print(record: Mapping[str, Any]) -> None:
    """Print one record as text."""
    match record.get("event"):
        case "agreement":
            top1 = f", top-1 {_share(record, 'top1')}" if "top1" in record else ""
            agreed = f"agreement with plain {_share(record, 'agreement')}, KL {record['kl']:.4f}{top1}"
            print(f"{record['when']}: {agreed}", flush=True)
        case "distilled":
            for name, what in (("agreement", "agreement"), ("top1", "top-1")):
                if f"{name}_points" in record:
                    points, rate = record[f"{name}_points"], record[f"{name}_points_per_minute"]
                    print(f"{what}: {points:+.1f} points, {rate:+.2f} a minute, on {record['held_out']} held-out clips")
            print(f"The model is in {record['folder']}")
        case _:
            print_record(record)


def _share(record: Mapping[str, Any], name: str) -> str:
    """Return a share with its 95 % interval, as text."""
    low, high = record[f"{name}_interval"]
    return f"{record[name]:.1%} ({low:.1%} to {high:.1%})"
