"""`sttm show`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sttm.cli.app import app
from sttm.cli.options import Compute, Device, Json, Method, Model, read_merging
from sttm.cli.printing import note


@app.command(epilog="Example:  sttm show clip.mp4 --model sttm-words -o clip.html")
def show(
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A video file.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Write .png, .gif, .mp4 or .html.")],
    model: Model = None,
    compute: Compute = None,
    method: Method = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show which tokens of a clip merge. A picture, a video, or a page to explore."""
    share = read_merging(compute, method)

    from sttm.visual import show as shows

    result = shows.show(clip, out, model, share, method=method or "sttm", device=device)
    if as_json:
        print(json.dumps(result))
        return
    for name, what in (("merged", "with merging"), ("plain", "without")):
        answers = ", ".join(f"{entry['label']} {entry['score']:.1%}" for entry in result[name])
        print(f"{what}: {answers}")
    note(f"what merged is in {out}")
