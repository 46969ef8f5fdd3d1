"""Running commands in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sttm import cli


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        """Return what each line of JSON holds."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def sttm(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run a command in this process; an exception that gets past main() fails the test."""

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sttm", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), output.out, output.err)

    return run
