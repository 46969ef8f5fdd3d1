"""`sttm predict`."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm.cli.app import app
from sttm.cli.options import (
    Batch,
    Compute,
    Device,
    Engine,
    EngineDtype,
    Isolate,
    Json,
    Method,
    Model,
    bring,
    read_merging,
)
from sttm.cli.printing import complain, complain_of_path, detail, note, printable, warn
from sttm.cli.progress import progress


# Over 40 lines: most are the options and what they mean.
@app.command(epilog="Example:  sttm predict clips/ 'more/*.mp4' --compute 0.62 --json")
def predict(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Files, folders, quoted patterns.")],
    model: Model = None,
    compute: Compute = None,
    method: Method = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels to print for each clip.")] = 5,
    views: Annotated[str, typer.Option(metavar="TxS", help="Temporal views x spatial crops to average over.")] = "1x1",
    batch_size: Batch = 8,
    device: Device = "auto",
    dtype: EngineDtype = "fp32",
    engine: Engine = "eager",
    isolate: Isolate = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write .jsonl, .csv or .parquet, whole or not at all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify video files. A file that cannot be read is named, and the others go on."""
    from sttm.config import parse_views

    share = read_merging(compute, method)
    temporal_and_spatial = parse_views(views)

    from sttm.evaluation.output import output as writing

    with nullcontext() if output is None else writing(output, top_k) as write:
        from sttm import models
        from sttm.devices import device_of
        from sttm.engines.choice import check_choice, place
        from sttm.evaluation.inference import labels_of
        from sttm.evaluation.predict import bundled_notice, find_videos, predict_files

        where = device_of(device)
        check_choice(engine, dtype, where)
        network, preprocess = models.load_with_preprocess(model or models.DEFAULT)
        notice = None if model else bundled_notice(labels_of(network))
        spent = bring(network.to(where), share, method)
        network = place(engine, network, dtype, batch=batch_size, note=note)
        if notice is not None:
            warn(notice)
        detail(f"{model or models.DEFAULT} on {where} in {dtype}, compute {spent:.3f}, {preprocess.sampling}")
        files = find_videos(clips, note=lambda sentence: warn(printable(sentence)))
        records = predict_files(
            files, network, preprocess, top_k=top_k, views=temporal_and_spatial, batch_size=batch_size, compute=spent,
            notice=notice, isolate=isolate,
        )  # fmt: skip
        failed = _report(records, len(files), as_json=as_json, write=write)
    if output is not None:
        note(f"the records of {len(files):,} inputs are in {output}")
    raise typer.Exit(int(failed > 0))


def _report(
    records: Iterable[Mapping[str, Any]], total: int, *, as_json: bool, write: Callable[[Any], None] | None
) -> int:
    """Print records as they come, or `write` them, errors and warnings on stderr too; return how many failed.

    With --json they are printed also where they are written.
    """
    failed = 0
    # no bar between lines of JSON on a terminal
    with progress("clips", total, shown=not (as_json and sys.stdout.isatty())) as advance:
        for record in records:
            path, error = printable(record["path"]), record.get("error")
            for warning in record.get("warnings", ()):
                warn(f"{path}: {warning}")
            if error is not None:
                failed += 1
                complain_of_path(record["path"], error)
            if write is not None:
                write(record)
            if as_json:
                print(json.dumps(record), flush=True)
            elif error is None and write is None:
                best = [f"{entry['score']:8.1%}  {entry['label']}" for entry in record["predictions"]]
                print(path, *best, sep="\n", flush=True)
            advance(1)
    if failed:
        complain(f"{failed} of {total} could not be classified")
    return failed
