"""The page of commands is what the parser says, and its examples are command lines that it takes."""

from __future__ import annotations

import shlex
from types import ModuleType

import pytest

from tests.helpers import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    import commands  # type: ignore[import-not-found]

    return commands


def test_the_page_is_what_the_parser_says(script: ModuleType) -> None:
    shown = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert shown == script.page(), "an option was changed; run: python studies/commands.py"


def test_every_command_has_an_example_that_it_takes(script: ModuleType) -> None:
    for path, command, context in script.commands():
        words, name = shlex.split(script.example(command).partition(" > ")[0]), path.split()
        assert words[: len(name)] == name, (path, words)
        command.make_context(context.info_name, words[len(name) :], parent=context.parent)
