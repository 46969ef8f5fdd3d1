"""Two runs in one folder: the second is refused, and what a killed run leaves behind locks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sttm
from sttm.config import load
from sttm.training import run as engine
from sttm.training.lock import FILE, locked

HOLD = """
import sys
from pathlib import Path
from sttm.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Return a process that holds the lock of the folder run/."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_is_refused_and_the_first_is_named(config: Path, tmp_path: Path, holder) -> None:
    before = (tmp_path / "run" / FILE).read_text()
    with pytest.raises(sttm.SttmError, match=f"process {holder.pid} on .* is training in {tmp_path}/run; stop it"):
        engine.train(load(config))
    assert (tmp_path / "run" / FILE).read_text() == before
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_lock_of_a_killed_process_is_none(tmp_path: Path, holder) -> None:
    holder.kill()
    holder.wait()
    assert str(holder.pid) in (tmp_path / "run" / FILE).read_text()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / FILE).read_text()
    assert (tmp_path / "run" / FILE).read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x", "host": 1}'])
def test_a_lock_file_that_says_nothing(text: str, tmp_path: Path, holder) -> None:
    (tmp_path / "run" / FILE).write_text(text)
    with pytest.raises(sttm.SttmError, match="another process is training"), locked(tmp_path / "run"):
        pass
