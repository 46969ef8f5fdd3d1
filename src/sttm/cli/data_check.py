"""`sttm data check`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm.cli.app import app
from sttm.cli.options import Json, Sets
from sttm.cli.printing import complain, complain_of_videos, print_rows
from sttm.cli.progress import progress

data = typer.Typer(help="Check data sets.", no_args_is_help=True)
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
    """Check every video of a data set before a long run: what is missing, unreadable, short or in two splits."""
    from sttm.config import load

    settings = load(config, overrides or ())
    from sttm.data.datasets import check as checking

    def watch(looks: Iterable[Any], total: int) -> Iterator[Any]:
        with progress("videos", total) as advance:
            for look in looks:
                yield look
                advance(1)

    sampling = checking.clip_of(settings.model)
    report = checking.check(settings.data, sampling=sampling, decode=decode, threads=threads, watch=watch)
    narrow = [{key: value for key, value in row.items() if key not in _JSON_ONLY} for row in report["splits"]]
    rows = [{key: len(value) if isinstance(value, list) else value for key, value in row.items()} for row in narrow]
    print_rows(f"Data of {config} (min / median / max)", rows, as_json=report if as_json else None)
    for row in report["splits"]:
        complain_of_videos(row["missing"], f"of {row['split']} missing")
        complain_of_videos([entry["error"] for entry in row["unreadable"]], f"of {row['split']} unreadable")
        for entry in row["remarks"][:10]:
            complain(f"warning: {entry['path']}: {entry['remark']}")
    for warning in report["warnings"]:
        complain(f"warning: {warning}")
    raise typer.Exit(int(not report["ok"]))
