"""The Typer application, what all of its commands share, and how errors are reported."""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

import sttm
from sttm.cli.printing import complain, complain_of_failure, set_verbosity, warn
from sttm.errors import SttmError, did_you_mean, first_line

INTERRUPTED, CLOSED = 130, 141  # 128 + SIGINT, and 128 + SIGPIPE: what a shell says of a program that these ended

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.", show_default=False)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what is used, and where an error comes from.", show_default=False)
]
Function = TypeVar("Function", bound=Callable[..., Any])


class Application(typer.Typer):
    """A Typer application whose commands all take --quiet and --verbose, and end in one line on Ctrl-C."""

    def command(self, *args: Any, **options: Any) -> Callable[[Function], Function]:
        """Register a command, as `typer.Typer.command` does."""
        register = super().command(*args, **options)

        def decorate(function: Function) -> Function:
            register(_with_shared_options(function))
            return function

        return decorate


def _with_shared_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that reads --quiet and --verbose before the function runs."""

    @wraps(function)
    def command(*, quiet: bool, verbose: bool, **values: Any) -> None:
        set_verbosity(quiet=quiet, verbose=verbose)
        try:
            function(**values)
            _flush_stdout()
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # `sttm ... | head -1` has read enough
            _close_stdout()
            raise typer.Exit(CLOSED) from None

    shared = {"quiet": Quiet, "verbose": Verbose}
    kind, signature = inspect.Parameter.KEYWORD_ONLY, inspect.signature(function, eval_str=True)
    own = [parameter.replace(kind=kind) for parameter in signature.parameters.values()]
    added = [inspect.Parameter(name, kind, default=False, annotation=type_) for name, type_ in shared.items()]
    command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return command


app = Application(
    help="Spatial-temporal token merging: the same video transformer for fewer multiply-adds.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help, which is printed at once: rich's needs as long as all the rest
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
    _open_what_is_closed()
    set_verbosity()
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        code = _run()
    try:
        _flush_stdout()
    except BrokenPipeError:
        _close_stdout()
        code = CLOSED
    except OSError as error:
        if not code:
            complain(f"{error.filename}: {error.strerror}")
        _close_stdout()
        code = code or 2
    sys.exit(code)


def _run() -> int:
    """Run the command that was asked for, and return the exit code."""
    try:
        return int(app(prog_name="sttm", standalone_mode=False) or 0)
    except typer.TyperException as error:
        _complain_of_usage(error)
    except SttmError as error:
        complain_of_failure(str(error), error)
    except OSError as error:  # a folder that may not be written, a full disk
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        complain_of_failure(what, error)
    except ImportError as error:  # a broken installation
        complain_of_failure(f"{first_line(error)}; sttm doctor tells what is broken and how to fix it", error)
    return 2


def _complain_of_usage(error: typer.TyperException) -> None:
    """Print what is wrong with the options in one sentence; the help where there are none."""
    context: Any = getattr(error, "ctx", None)
    if context is not None and error.message == context.get_help():
        print(error.message, file=sys.stderr)
        return
    what, wrong, known = error.format_message(), "", list[str]()
    if hasattr(error, "option_name"):  # an option that there is not
        what, wrong, known = error.message, error.option_name, getattr(error, "possibilities", None) or []
    elif command := re.match("No such command '(.*?)'", what, re.S):
        what, wrong, known = command[0], command[1], list(getattr(context.command, "commands", ()))
    elif choice := re.search("'([^']*)' is not one of (.*)", what, re.S):
        wrong, known = choice[1], re.findall("'([^']+)'", choice[2])
    what = what.rstrip(".").replace("Value error, ", "").replace(": Input should be", ", which should be")
    near = did_you_mean(wrong, known)
    advice = f"see {'sttm' if context is None else context.command_path} --help"
    complain(f"{what[0].lower()}{what[1:]}; {near}{' ' if near else ''}{advice}")


def _open_what_is_closed() -> None:
    """Put streams in the place of those that the caller closed, so that no file of ours gets their numbers.

    What is written to such a stdout fails as any write to a closed file does; what is written to stderr goes nowhere.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, mode), number)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def _flush_stdout() -> None:
    """Write what is still to be written; raise OSError, which names stdout, if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def _close_stdout() -> None:
    """Let what is still to be written go nowhere: Python flushes it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one line, without the place in the source that Python prints beside it."""
    warn(" ".join(str(message).split()))
