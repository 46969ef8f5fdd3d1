"""The Typer application, and the handling of errors."""

import os
import sys
import warnings
from typing import Annotated

import typer

import sttm
from sttm.cli.printing import complain
from sttm.errors import SttmError, first_line

app = typer.Typer(
    help="Spatial-temporal token merging: the same video transformer for fewer multiply-adds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # main() below reports errors
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(sttm.__version__)
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the one option that belongs to no command."""


def main() -> None:
    """Run the command line; a mistake that the user can fix is one sentence on stderr and exit code 2."""
    rank = int(os.environ.get("RANK", "0"))  # under torchrun
    process = f"process {rank}: " if rank else ""
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            app()
        except SttmError as error:
            complain(f"{process}{error}")
        except OSError as error:  # a folder that may not be written, a full disk
            complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        except ImportError as error:  # a broken installation
            complain(f"{first_line(error)}; sttm doctor tells what is broken and how to fix it")
    sys.exit(2)  # a command that ended well has left by SystemExit


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one line, without the place in the source that Python prints beside it."""
    complain(f"warning: {' '.join(str(message).split())}")
