"""`sttm doctor`."""

from dataclasses import asdict

import typer

from sttm.cli.app import app
from sttm.cli.options import Json
from sttm.cli.printing import is_quiet, print_rows


@app.command(epilog="Example:  sttm doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what is installed and what works. Says how to fix what does not, and how to install what is absent."""
    from rich.console import Console

    from sttm.doctor import examine

    with Console(stderr=True, quiet=is_quiet()).status("checking"):
        rows = [asdict(finding) for finding in examine()]
    print_rows("Doctor", rows, as_json=rows if as_json else None)
    raise typer.Exit(int(any(row["needed"] and row["status"] == "broken" for row in rows)))
