"""`sttm data check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sttm.cli.app import Application, app
from sttm.cli.options import Json, Sets
from sttm.cli.printing import complain_of_videos, print_rows, warn
from sttm.cli.progress import progress

if TYPE_CHECKING:
    from sttm.config.sections import ModelSettings
    from sttm.data.video.read import Sampling

data = Application(help="Check data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

#: Fields of a split that are in the JSON only, to keep the table narrow.
_JSON_ONLY = ("fps", "direction_sensitive")


@data.command(epilog="Example:  sttm data check configs/ut_interaction.yaml --decode")
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; its data section is checked.")],
    overrides: Sets = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode a clip of each too: slower, but finds more.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Videos checked at once.")] = 8,
    as_json: Json = False,
) -> None:
    """Check every video before a long run. Says what is missing, unreadable, short or in two splits."""
    from sttm.config import load

    settings = load(config, overrides or ())
    from sttm.data.datasets import check as checking

    sampling = clips_of(settings.model)
    with progress("videos") as advance:
        report = checking.check(settings.data, sampling=sampling, decode=decode, threads=threads, advance=advance)
    narrow = [{key: value for key, value in row.items() if key not in _JSON_ONLY} for row in report["splits"]]
    rows = [{key: len(value) if isinstance(value, list) else value for key, value in row.items()} for row in narrow]
    print_rows(f"Data of {config} (min / median / max)", rows, as_json=report if as_json else None)
    for row in report["splits"]:
        complain_of_videos(row["missing"], f"of {row['split']} missing")
        complain_of_videos([entry["error"] for entry in row["unreadable"]], f"of {row['split']} unreadable")
        for entry in row["remarks"][:10]:
            warn(f"{entry['path']}: {entry['remark']}")
    for warning in report["warnings"]:
        warn(warning)
    raise typer.Exit(int(not report["ok"]))


def clips_of(model: ModelSettings) -> Sampling | None:
    """Return the frames that a model takes of a video, or None where only a download would tell."""
    from sttm import models
    from sttm.data.transforms.preprocess import Preprocess
    from sttm.data.transforms.processor_config import FAMILIES
    from sttm.data.video.read import Sampling
    from sttm.training.build import sampling_of

    if model.start is not None and (model.start in models.BUNDLED or Path(model.start).is_dir()):
        return sampling_of(model, Preprocess.from_folder(models.resolve(model.start)).sampling)
    if model.family in FAMILIES:
        family = FAMILIES[model.family]
        return sampling_of(model, Sampling(int(model.config.get(family.num_frames_key) or family.num_frames)))
    return sampling_of(model, Sampling(model.frames)) if model.frames is not None else None
