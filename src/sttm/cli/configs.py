"""`sttm configs` and `sttm configs show`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sttm.cli.app import Application, app
from sttm.cli.options import Json

configs = Application(help="List the recipes that ship with the package.")
app.add_typer(configs, name="configs")


@configs.callback(invoke_without_command=True, epilog="Example:  sttm configs --json")
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes that ship with the package; `sttm train NAME` runs one."""
    from sttm.config.reading import recipes

    if context.invoked_subcommand is not None:
        return
    rows = [{"recipe": name, "about": _first_comment(path)} for name, path in recipes().items()]
    if as_json:
        print(json.dumps(rows))
        return
    width = max((len(row["recipe"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['recipe']:<{width}}  {row['about']}")


@configs.command(epilog="Example:  sttm configs show ssv2/videomae-b-sttm > mine.yaml")
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="As `sttm configs` lists it.")]) -> None:
    """Print a recipe as it is: what it needs, how it is run, and its settings."""
    from sttm.config.reading import find

    print(find(name).read_text(encoding="utf-8"), end="")


def _first_comment(path: Path) -> str:
    """Return the first line of a recipe, without its sign."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
