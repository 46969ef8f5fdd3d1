"""The commands that look, classify and time."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sttm.cli.app import app
from sttm.cli.options import Batch, Device, Json, Model, Seed, bring_to, device_of, names, read_compute
from sttm.cli.printing import print_rows, report_predictions, wide_console
from sttm.errors import SttmError


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
    from sttm.config import parse_views

    fraction = None if compute is None else read_compute(compute)
    if method is not None and fraction is None:
        raise SttmError(f"--method {method} says how to merge but not how much: add, say, --compute 0.62.")
    temporal_and_spatial = parse_views(views)

    import torch

    from sttm import models
    from sttm.data.transforms.preprocess import Preprocess
    from sttm.evaluation import predict as engine

    name = model or models.DEFAULT
    preprocess = Preprocess.from_folder(models.resolve(name))
    network = models.load(name).to(device_of(device))
    spent = bring_to(network, fraction, method or "sttm")
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
    raise typer.Exit(report_predictions(records, len(sources), as_json=as_json))


@app.command(epilog="Example:  sttm models --json")
def models(as_json: Json = False) -> None:
    """List the bundled models, and the families of models that can be merged."""
    from sttm import models as floor
    from sttm.backbones import FAMILIES

    rows = [{"model": name, "kind": "bundled", "about": about} for name, about in floor.BUNDLED.items()]
    for family in FAMILIES:
        about = f"family {family.family}: {', '.join(family.classes)}"
        rows.append({"model": family.example, "kind": "hub id", "about": about})
    print_rows("Models", rows, as_json=rows if as_json else None)


@app.command(epilog="Example:  sttm doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what is installed, what works, and how to mend what does not."""
    from sttm.doctor import examine

    with Console(stderr=True).status("looking around"):
        rows = [asdict(finding) for finding in examine()]
    print_rows("Doctor", rows, as_json=rows if as_json else None)
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
    from sttm.synth.videos import SynthSettings, make

    settings = SynthSettings(kind=kind, clips=clips, seed=seed, frames=frames, size=size)
    make(folder, settings, workers=workers, progress=sys.stderr.isatty())


@app.command(epilog="Example:  sttm bench --methods sttm --compute 1,0.62 --dtype fp32,bf16")
def bench(
    model: Annotated[list[str] | None, typer.Option(metavar="M", help="May be given several times.")] = None,
    methods: Annotated[str, typer.Option(metavar="A,B", help="Ways to merge.")] = "sttm",
    compute: Annotated[str, typer.Option(metavar="C,D", help="Parts of multiply-adds.")] = "1,0.8,0.62,0.4",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips at once.", show_default="1; 8 with --pipeline")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="T,U", help="fp32, bf16, or both.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each model is timed, in turn.")] = 10,
    device: Device = "auto",
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Time reading, the model as it is, and eval.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="LIST", help="Videos for --pipeline.")] = None,
    as_json: Json = False,
) -> None:
    """Time the plain and the merged model, turn by turn in one process; or whether reading keeps up with it."""
    if data is not None and not pipeline:
        raise SttmError("--data belongs to --pipeline; without it the clips are random numbers.")
    if pipeline:
        from sttm import models as floor
        from sttm.benchmark import pipeline as pipes

        found = pipes.run(
            model or [floor.DEFAULT], data=data, batch_size=batch or 8, rounds=rounds, device=device_of(device)
        )
        print_rows(f"Pipeline on {found['machine']}", found["rows"], as_json=found if as_json else None)
        return
    computes = [read_compute(text) for text in compute.split(",")]

    from sttm import models as floor
    from sttm.benchmark import speed as engine

    result = engine.run(
        model or [floor.DEFAULT],
        names(methods),
        computes,
        batch=batch or 1,
        dtypes=names(dtype),
        rounds=rounds,
        device=device_of(device).type,
    )
    print_rows(f"Bench on {result['machine']}", result["rows"], as_json=result if as_json else None)


@app.command(epilog="Example:  sttm demo")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For videos and report.html.")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=1, help="Videos to make and classify.")] = 360,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Make videos, classify them with and without merging, and write a report with pictures; all offline."""
    from sttm.visual import demo as engine

    result = engine.run(folder, clips=clips, seed=seed)
    if as_json:
        print(json.dumps(result))
    else:
        wide_console().print(engine.table(result))
        print(f"The pictures are in {result['report']}")
