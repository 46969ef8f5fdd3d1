"""Write docs/commands.md, every command with its options, from the command line's own parser.

How to run, from the project's root:
    python studies/commands.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import sttm.cli
from sttm.cli.app import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """# Commands

Every command of `sttm` and its options, as `sttm COMMAND --help` prints them. Results go to standard output, messages
to standard error. Exit code 0: all done; 1: some inputs failed, each named, the others done; 2: wrong usage, said in
one sentence. Written by `python studies/commands.py` from the parser.
"""
#: What every command has, said once.
SHARED = ("--quiet", "--verbose", "--help")


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each command, the command, and a context to ask it in; those of a group by themselves."""
    root = typer.main.get_command(app)
    yield from _below(root, root.make_context("sttm", [], resilient_parsing=True))


def _below(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "list_commands") and not command.invoke_without_command:
            yield from _below(command, inner)
        else:
            yield inner.command_path, command, inner
            if hasattr(command, "list_commands"):
                yield from _below(command, inner)


def example(command: Any) -> str:
    """Return the command line that the help ends with."""
    return (command.epilog or "").partition("Example:")[2].strip()


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for path, command, context in commands():
        records = [record for option in command.get_params(context) if (record := option.get_help_record(context))]
        rows = [
            f"| `{names.replace('|', ', ')}` | {' '.join(text.split()).replace('|', ', ').replace('<', '&lt;')} |"
            for names, text in records
            if not any(shared in names for shared in SHARED)
        ]
        parts.append(f"## {path}\n\n{' '.join((command.help or '').split())}\n")
        if shown := example(command):
            parts.append(f"```text\n{shown}\n```\n")
        if rows:
            parts.append("\n".join(["| argument or option | meaning |", "|---|---|", *rows]) + "\n")
    parts.append("All commands take `--quiet` (results and errors only), `--verbose` and `--help`.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}: {len(list(commands()))} commands of {sttm.cli.__name__}")
