"""`sttm bench`."""

from pathlib import Path
from typing import Annotated

import typer

from sttm.cli.app import app
from sttm.cli.options import Device, Json, names, read_compute
from sttm.cli.printing import print_rows
from sttm.cli.progress import progress
from sttm.errors import SttmError


@app.command(epilog="Example:  sttm bench --methods sttm --compute 1,0.62 --dtype fp32,bf16")
def bench(
    model: Annotated[list[str] | None, typer.Option(metavar="M", help="May be repeated.")] = None,
    methods: Annotated[str, typer.Option(metavar="A,B", help="How to merge.")] = "sttm",
    compute: Annotated[str, typer.Option(metavar="C,D", help="Shares of the multiply-adds.")] = "1,0.8,0.62,0.4",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips at once.", show_default="1; 8 with --pipeline")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="T,U", help="fp32, bf16, int8.")] = "fp32",
    engine: Annotated[str, typer.Option(metavar="E,F", help="eager, compile, onnx, openvino.")] = "eager",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each model is timed, in turn.")] = 10,
    device: Device = "auto",
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Time reading, the model as it is, and eval.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="LIST", help="Videos for --pipeline.")] = None,
    as_json: Json = False,
) -> None:
    """Time plain and merged models in turn. With --pipeline, time reading too: whether it keeps up."""
    if data is not None and not pipeline:
        raise SttmError("--data belongs to --pipeline, and without it the clips are random numbers; add --pipeline")
    computes = [read_compute(text) for text in compute.split(",")]

    from sttm.models import DEFAULT

    timed = model or [DEFAULT]
    if pipeline:
        from sttm.benchmark import pipeline as pipeline_benchmark

        with progress("rounds") as advance:
            result = pipeline_benchmark.run(
                timed, data=data, batch_size=batch or 8, rounds=rounds, device=device, advance=advance
            )
    else:
        from sttm.benchmark import speed

        with progress("forwards") as advance:
            result = speed.run(
                timed, names(methods), computes, batch=batch or 1, dtypes=names(dtype), engines=names(engine),
                rounds=rounds, device=device, advance=advance,
            )  # fmt: skip
    title = f"{'Pipeline' if pipeline else 'Bench'} on {result['machine']}"
    print_rows(title, result["rows"], as_json=result if as_json else None)
