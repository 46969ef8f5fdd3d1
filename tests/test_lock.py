"""Two runs in one folder: the second is refused, and what a killed run leaves behind locks nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sttm
from sttm.lock import FILE, locked
from tests.helpers import holding


def test_the_second_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with holding(tmp_path) as holder:
        said = (tmp_path / FILE).read_text()
        refused = pytest.raises(sttm.SttmError, match=f"process {holder.pid} on .* reads {tmp_path}; stop it, or wait")
        with refused, locked(tmp_path, "reads", "wait"):
            pass
        assert (tmp_path / FILE).read_text() == said


def test_a_lock_of_a_killed_process_is_none(tmp_path: Path) -> None:
    with holding(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert str(holder.pid) in (tmp_path / FILE).read_text()
        with locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / FILE).read_text()
        assert (tmp_path / FILE).read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x", "host": 1}'])
def test_a_lock_file_that_says_nothing(text: str, tmp_path: Path) -> None:
    with holding(tmp_path):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(sttm.SttmError, match="another process is training"), locked(tmp_path):
            pass
