"""The Typer application, and the last word on errors."""

import os
import sys
from typing import Annotated

import typer

import sttm
from sttm.cli.printing import complain
from sttm.errors import SttmError

app = typer.Typer(
    help="Spatial-temporal token merging: a video transformer that computes less and sees as much.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # main() below has the last word on errors
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(sttm.__version__)
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Holds the one option that belongs to no command."""


def main() -> None:
    """Run the command line; a mistake that the user can mend is one sentence on stderr and exit code 2."""
    rank = int(os.environ.get("RANK", "0"))  # under torchrun
    process = f"process {rank}: " if rank else ""
    try:
        app()
    except SttmError as error:
        complain(f"{process}{error}")
    except OSError as error:  # a folder that may not be written, a full disk
        complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    except ImportError as error:  # a broken installation
        complain(f"{str(error).splitlines()[0]}; sttm doctor tells what is broken and how to mend it.")
    sys.exit(2)  # a command that went well has left by SystemExit
