"""`sttm doctor`."""

from dataclasses import asdict

import typer
from rich.console import Console

from sttm.cli.app import app
from sttm.cli.options import Json
from sttm.cli.printing import print_rows


@app.command(epilog="Example:  sttm doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what is installed, what works, and how to fix what does not."""
    from sttm.doctor import examine

    with Console(stderr=True).status("checking"):
        rows = [asdict(finding) for finding in examine()]
    print_rows("Doctor", rows, as_json=rows if as_json else None)
    raise typer.Exit(int(any(row["needed"] and row["status"] == "broken" for row in rows)))
