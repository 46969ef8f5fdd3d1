"""`sttm bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sttm.cli.app import app
from sttm.cli.options import Device, Json, names, read_compute
from sttm.cli.printing import print_rows
from sttm.cli.progress import progress
from sttm.errors import SttmError


# Over 40 lines: most are the options and what they mean.
@app.command(epilog="Example:  sttm bench --methods sttm,tome,random --compute 1,0.62 --batch 1,8 --plot bench.png")
def bench(
    model: Annotated[list[str] | None, typer.Option(metavar="M", help="May be repeated.")] = None,
    methods: Annotated[str, typer.Option("--methods", "--method", metavar="A,B", help="How to merge.")] = "sttm",
    compute: Annotated[str, typer.Option(metavar="C,D", help="Shares of the multiply-adds.")] = "1,0.8,0.62,0.4",
    batch: Annotated[
        str | None, typer.Option(metavar="N,O", help="Clips at once.", show_default="1; 8 with --pipeline")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="T,U", help="fp32, bf16, int8.")] = "fp32",
    engine: Annotated[str, typer.Option(metavar="E,F", help="eager, compile, onnx, openvino.")] = "eager",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each model is timed, in turn.")] = 10,
    device: Device = "auto",
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Time reading, the model as it is, and eval.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="LIST", help="Videos for --pipeline.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Time training steps, and measure their memory.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw clips/s over multiply-adds or batch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time plain and merged models in turn. With --pipeline, time reading too: whether it keeps up.

    With --train, time training steps, and measure their memory, each model in a process of its own.
    """
    if data is not None and not pipeline:
        raise SttmError("--data belongs to --pipeline, and without it the clips are random numbers; add --pipeline")
    if train and pipeline:
        raise SttmError("--train and --pipeline time different things; leave one of the two out")
    if train and names(engine) != ["eager"]:
        raise SttmError(f"--engine={engine}: models are trained on eager; leave --engine out, or --train")
    if plot is not None and (pipeline or train):
        other = "--pipeline" if pipeline else "--train"
        raise SttmError(f"--plot draws forwards of the models alone, not {other}; leave one of the two out")
    computes = [read_compute(text) for text in compute.split(",")]
    batches = None if batch is None else [_read_batch(text) for text in names(batch)]
    if pipeline and batches is not None and len(batches) != 1:
        raise SttmError(f"--batch={batch}: --pipeline times one batch size at a time; give one number")

    from sttm.models import DEFAULT

    timed = model or [DEFAULT]
    common: dict[str, Any] = {"rounds": rounds, "device": device}
    if pipeline:
        from sttm.benchmark import pipeline as pipeline_benchmark

        with progress("rounds") as advance:
            size = batches[0] if batches else 8
            result = pipeline_benchmark.run(timed, data=data, batch_size=size, advance=advance, **common)
    elif train:
        from sttm.benchmark import train as train_benchmark

        with progress("steps") as advance:
            result = train_benchmark.run(
                timed, names(methods), computes, batches=batches or [1], dtypes=names(dtype), advance=advance, **common
            )
    else:
        from sttm.benchmark import plot as drawing
        from sttm.benchmark import speed

        if plot is not None:
            drawing.check_plot(plot)
        with progress("forwards") as advance:
            result = speed.run(
                timed, names(methods), computes, batches=batches or [1], dtypes=names(dtype), engines=names(engine),
                advance=advance, **common,
            )  # fmt: skip
        if plot is not None:
            drawing.plot(plot, result["rows"], result["machine"])
    shared, rows = _shared(result["rows"])
    title = ", ".join(
        [f"{'Pipeline' if pipeline else 'Training' if train else 'Bench'} on {result['machine']}", *shared]
    )
    print_rows(title, rows, as_json=result if as_json else None)


def _shared(rows: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return what all rows are of, in words for the title, and the rows without it, so that the table is narrow."""
    first = rows[0]
    same = [
        key for key in ("model", "batch", "dtype", "mode") if key in first and all(r[key] == first[key] for r in rows)
    ]
    words = [f"batch {first[key]}" if key == "batch" else str(first[key]) for key in same]
    return words, [{key: value for key, value in row.items() if key not in same} for row in rows]


def _read_batch(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise SttmError(f"--batch={text} is not a whole number of one or more; give numbers by commas, such as 1,8")
    return int(text)
