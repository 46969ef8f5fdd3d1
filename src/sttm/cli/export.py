"""`sttm export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sttm.cli.app import app
from sttm.cli.options import Compute, Json, Method, bring, read_merging
from sttm.cli.printing import note, print_rows


@app.command(epilog="Example:  sttm export sttm-motion motion.onnx")
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A name in .onnx, or in .xml for OpenVINO.")],
    compute: Compute = None,
    method: Method = None,
    dtype: Annotated[Literal["fp32", "bf16", "int8"], typer.Option(help="bf16 is for .xml only.")] = "fp32",
    clips: Annotated[
        list[str] | None,
        typer.Option(metavar="CLIP", help="Videos to compare on; may be repeated.", show_default="bundled ones"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as an ONNX or OpenVINO file.

    The file is kept only if it gives the model's answers."""
    share = read_merging(compute, method)

    from sttm.engines import export as exporting

    exporting.check_target(out, dtype, force=force)

    import torch

    from sttm import models
    from sttm.evaluation.predict import find_videos

    network, preprocess = models.load_with_preprocess(model)
    bring(network, share, method)
    videos = find_videos(clips or ())
    pixels = torch.cat([exporting.clip_pixels(video.path, preprocess) for video in videos]) if videos else None
    written = exporting.export(network, out, preprocess=preprocess, dtype=dtype, clips=pixels, force=force)
    print_rows("Export", [asdict(written)], as_json=asdict(written) if as_json else None)
    note(f"{out} agrees with {model} on {written.clips} clips")
