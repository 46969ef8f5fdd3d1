"""What a run of training needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm import save
from sttm.synth.videos import SynthSettings, make
from tests.helpers import tiny_model


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> tuple[Path, Path]:
    """Return the folder of 90 small synthetic videos, and that of a tiny model to start from."""
    folder = tmp_path_factory.mktemp("small-set")
    videos = make(folder / "set", SynthSettings(kind="motion", clips=90, frames=8, size=32), workers=1)
    return videos, save(tiny_model("videomae"), folder / "start")
