"""Ray that does not start is a sentence, and its sockets have paths that are short enough."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sttm.corpus import cluster
from sttm.errors import SttmError

LONG = "a-folder-for-temporary-files-on-a-large-disk"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder with a long path that is the one for temporary files."""
    (tmp_path / LONG).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / LONG))
    return tmp_path / LONG


def test_sockets_have_short_paths_where_temporary_files_have_long_ones(place: Path) -> None:
    folder = Path(cluster._folder())
    try:
        session = f"session_2026-01-31_23-59-59_999999_{os.getpid()}"
        assert len(os.fsencode(folder / session / "sockets" / "plasma_store")) <= 103
        assert folder.is_dir() and not list(place.iterdir())
    finally:
        folder.rmdir()


def test_folders_of_killed_runs_are_removed_from_both_places(place: Path) -> None:
    gone = 2**22 + 1  # no process has this number
    folders = [Path(tempfile.mkdtemp(prefix=f"sttm-ray-{gone}-", dir=where)) for where in (place, "/tmp")]
    own = Path(cluster._folder())
    try:
        cluster._remove_left_overs()
        assert own.is_dir() and not any(folder.exists() for folder in folders)
    finally:
        own.rmdir()


def test_no_folder_for_sockets_is_a_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_temporary", lambda: [str(place)])
    with pytest.raises(SttmError, match=r"path has at most \d+ bytes; .* set TMPDIR to another short path"):
        cluster._folder()
    monkeypatch.setattr(cluster, "_temporary", lambda: ["/proc"])
    with pytest.raises(SttmError, match="Ray cannot write to /proc; "):
        cluster._folder()


@pytest.mark.parametrize("error", [Exception, OSError, ValueError, ConnectionError])
@pytest.mark.parametrize(("address", "said"), [(None, "Ray does not start on this machine"), ("head:1", "head:1")])
def test_ray_that_does_not_start_is_a_sentence(error: type[Exception], address: str | None, said: str) -> None:
    """A machine that is too busy makes Ray raise a bare Exception after 30 s."""

    def init(**options: object) -> None:
        raise error("The current node timed out during startup.\nMore of it")

    with pytest.raises(SttmError, match=said) as caught:
        cluster._start(SimpleNamespace(init=init), address, {})
    assert "(The current node timed out during startup);" in str(caught.value) and "\n" not in str(caught.value)
