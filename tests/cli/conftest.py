"""Running commands in this process, and what a run of training needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sttm import cli, save
from sttm.synth.videos import SynthSettings, make
from tests.helpers import tiny_model


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


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> tuple[Path, Path]:
    """Return the folder of 90 small synthetic videos, and that of a tiny model to start from."""
    folder = tmp_path_factory.mktemp("small-set")
    videos = make(folder / "set", SynthSettings(kind="motion", clips=90, frames=8, size=32), workers=1)
    return videos, save(tiny_model("videomae"), folder / "start")
