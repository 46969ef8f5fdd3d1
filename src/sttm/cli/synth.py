"""`sttm synth`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sttm.cli.app import app
from sttm.cli.options import Seed
from sttm.cli.progress import progress


@app.command(epilog="Example:  sttm synth videos --kind motion --clips 1000 --seed 0")
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    kind: Annotated[Literal["motion", "scene"], typer.Option(help="What tells the classes apart.")] = "motion",
    clips: Annotated[int, typer.Option(min=1, help="Videos to make.")] = 1000,
    seed: Seed = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each video.")] = 16,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 112,
    workers: Annotated[int | None, typer.Option(min=1, show_default="one for each core", help="Processes.")] = None,
) -> None:
    """Make synthetic videos. These are labelled mp4 files of known classes."""
    from sttm.synth.videos import SynthSettings, make

    settings = SynthSettings(kind=kind, clips=clips, seed=seed, frames=frames, size=size)
    with progress("videos") as advance:
        make(folder, settings, workers=workers, advance=advance)
