"""`sttm batch`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sttm.cli.app import app
from sttm.cli.options import Batch, Compute, Device, Dtype, Json, Method, Model, Root, read_merging
from sttm.cli.printing import complain, note, print_rows, warn
from sttm.cli.progress import progress

if TYPE_CHECKING:
    from sttm.corpus.run import Outcome

#: Seconds between two lines of progress where there is no terminal.
EVERY = 60.0


# Over 40 lines: most are the options and what they mean.
@app.command(epilog="Example:  sttm batch clips/ rows/ --compute 0.62 --features pooled")
def batch(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder, list, parquet of paths, or tar shards.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the rows; one begun goes on.")],
    model: Model = None,
    compute: Compute = None,
    method: Method = None,
    features: Annotated[Literal["none", "pooled", "slots"], typer.Option(help="Added to every row.")] = "none",
    root: Root = None,
    format: Annotated[str, typer.Option(help="Annotation format of a list.")] = "auto",
    column: Annotated[str | None, typer.Option(help="Of a parquet: its column of paths.", show_default="path")] = None,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="Labels of each video.")] = 5,
    views: Annotated[str, typer.Option(metavar="TxS", help="Temporal views x spatial crops to average over.")] = "1x1",
    batch_size: Batch = 8,
    part: Annotated[int, typer.Option(min=1, help="Videos in a part, which is redone whole.")] = 1024,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, or auto.", show_default="this machine alone")
    ] = None,
    decoders: Annotated[int | None, typer.Option(min=1, help="Decoders.", show_default="the cores left")] = None,
    models: Annotated[int | None, typer.Option(min=1, help="Copies of the model.", show_default="one a GPU")] = None,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB for what waits between the two.")] = 1.0,
    read_seconds: Annotated[float, typer.Option(help="A video that takes longer is given up.")] = 60.0,
    read_gib: Annotated[float, typer.Option(help="And one that takes more memory.")] = 4.0,
    as_json: Json = False,
) -> None:
    """Make a row of every video of a corpus, on Ray Data. Stopped or killed, the same command goes on."""
    from sttm.config import parse_views
    from sttm.errors import SttmError

    share = read_merging(compute, method)
    parse_views(views)
    if not source.exists() and not any(sign in str(source) for sign in "*?[{"):
        raise SttmError(f"{source} does not exist; give a folder, a list, a parquet of paths, or tar shards")

    from sttm.corpus.run import Request, run
    from sttm.data.isolated import Limits
    from sttm.models import DEFAULT

    if model is None:
        warn(f"no model was named, so this is {DEFAULT}, which knows synthetic videos only; name yours with --model")
    request = Request(
        source, output, root, format, column, model or DEFAULT, share, method or "sttm", features, views, top_k,
        batch_size, part, device, dtype, address, decoders, models, memory, Limits(read_seconds, read_gib),
    )  # fmt: skip
    with _reporting() as (begun, advance):
        outcome = run(request, begun=begun, advance=advance)
    raise typer.Exit(_report(outcome, output, as_json=as_json))


@contextmanager
def _reporting() -> Iterator[tuple[Any, Any]]:
    """Yield what takes the progress: a bar on a terminal, or else a line a minute."""
    with progress("videos") as bar:
        started = last = time.monotonic()
        total = done = made = failed = 0

        def begun(before: int, videos: int) -> None:
            nonlocal total, done, started, last
            total, done, started = videos, before, time.monotonic()
            last = started
            if before:
                note(f"{before:,} of {videos:,} videos are finished already")
            bar(before, videos)

        def advance(videos: int, errors: int) -> None:
            nonlocal done, made, failed, last
            done, made, failed = done + videos, made + videos, failed + errors
            bar(videos, note=f"{failed:,} errors" if failed else "")
            now = time.monotonic()
            if not sys.stderr.isatty() and now - last >= EVERY:
                last, rate = now, made / (now - started)
                left = f"{(total - done) / rate / 60:.0f} min left"
                note(f"{done:,} of {total:,} videos, {rate:.3g}/s, {left}, {failed:,} errors")

        yield begun, advance


def _report(outcome: "Outcome", output: Path, *, as_json: bool) -> int:
    """Print what the run ended with, and return the exit code."""
    manifest = outcome.manifest
    facts = {
        "output": str(output), "videos": manifest["settings"]["videos"], "rows": manifest["rows"],
        "errors": manifest["errors"], "parts": len(manifest["parts"]), "made_now": outcome.videos,
        "seconds": round(outcome.seconds, 3), "videos_per_s": outcome.videos / outcome.seconds,
    }  # fmt: skip
    print_rows("", [facts], as_json=facts if as_json else None)
    if outcome.errors:
        complain(f"{outcome.errors:,} of {manifest['rows']:,} videos could not be classified; their rows say why")
    return int(outcome.errors > 0)
