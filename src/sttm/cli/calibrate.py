"""`sttm calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm.cli.app import app
from sttm.cli.options import Batch, Device, Format, Json, Learned, Method, Root, read_compute
from sttm.cli.printing import complain_of_path, print_rows, warn
from sttm.cli.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from sttm.calibration import Calibration
    from sttm.data.transforms.preprocess import Preprocess
    from sttm.data.video.video import Video


# Over 40 lines: most are the options.
@app.command(epilog="Example:  sttm calibrate my-model --data videos/ --compute 0.4 -o calibrated")
def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub id of a plain model.")],
    data: Annotated[Path, typer.Option(metavar="D", help="Folder of videos, or an annotation list; without labels.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="For the merged model.")],
    compute: Annotated[str, typer.Option(metavar="C", help="Share of the plain model's multiply-adds to spend.")],
    method: Method = None,
    learned: Learned = False,
    clips: Annotated[int, typer.Option(min=1, help="Videos to compare on, spread over the data.")] = 32,
    candidates: Annotated[int, typer.Option(min=1, help="Schedules to compare at most.")] = 40,
    root: Root = None,
    format: Format = "auto",
    batch_size: Batch = 8,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Choose where one model merges. By agreement with its plain self, on a few unlabelled videos."""
    share = read_compute(compute)

    from sttm import models
    from sttm.calibration import calibration
    from sttm.data.datasets.unlabelled import find_unlabelled, spread
    from sttm.devices import device_of
    from sttm.evaluation.report import make_folder

    network, preprocess = models.load_with_preprocess(model)
    videos = spread(find_unlabelled(data, root, format), clips)
    make_folder(out, "--out")
    pixels = _read(videos, preprocess)
    with progress("clips") as advance:
        found = calibration(
            network.to(device_of(device)), pixels, share, method or "sttm", learned, limit=candidates,
            batch_size=batch_size, advance=advance,
        )  # fmt: skip
    models.save(network, out)
    preprocess.to_folder(out)
    _print(found, len(pixels), out, as_json=as_json)
    raise typer.Exit(int(len(pixels) < len(videos)))


def _read(videos: "list[Video]", preprocess: "Preprocess") -> "Tensor":
    """Return the pixels of those videos that can be read, and name the others on stderr."""
    from contextlib import closing

    import torch

    from sttm.data.loader import read_ahead
    from sttm.errors import SttmError
    from sttm.evaluation.inference import reading_threads

    clips = []
    with closing(read_ahead(videos, preprocess, (1, 1), reading_threads())) as samples:
        for sample in samples:
            if sample.pixels_VTCHW is None:
                complain_of_path(sample.path, str(sample.error))
            else:
                clips.append(sample.pixels_VTCHW)
    if not clips:
        raise SttmError(f"none of the {len(videos)} videos can be read; check --data")
    return torch.cat(clips)


def _print(found: "Calibration", clips: int, out: Path, *, as_json: bool) -> None:
    """Print the plan, and how its answers agree with those of the plain model."""
    from dataclasses import asdict

    plan, rows = found.plan, []
    for name, agreement in (("default", found.default), ("calibrated", found.agreement)):
        if agreement is not None:
            rows.append(
                {"plan": name, "distance": agreement.distance, "KL": agreement.kl, "top-1 agreement": agreement.top1}
            )
    if as_json:
        facts: dict[str, Any] = {"plan": asdict(plan), "default": found.default and asdict(found.default)}
        facts |= {"calibrated": asdict(found.agreement), "clips": clips, "candidates": found.candidates}
        print_rows("", [], as_json=facts | {"seconds": round(found.seconds, 3), "folder": str(out)})
        return
    print(plan)
    print_rows(f"Agreement with the plain model on {clips} clips", rows)
    print(f"{found.candidates} schedules compared in {found.seconds:.0f} s. The model is in {out}")
    if clips < 16:
        warn(f"{clips} clips are few to choose by; give some 32")
