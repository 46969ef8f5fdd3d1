"""`sttm demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sttm.cli.app import app
from sttm.cli.options import Json, Seed
from sttm.cli.printing import wide_console
from sttm.cli.progress import progress


@app.command(epilog="Example:  sttm demo")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For videos and report.html.")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=1, help="Videos to make and classify.")] = 360,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Show what merging does, offline. Makes videos, classifies them plain and merged, and writes a report."""
    from sttm.visual import demo as demonstration

    with progress("videos") as advance:
        result = demonstration.run(folder, clips=clips, seed=seed, advance=advance)
    if as_json:
        print(json.dumps(result))
    else:
        for table in demonstration.tables(result):
            wide_console().print(table)
            print()
        print(f"The pictures are in {result['report']}")
