"""Fixtures of the training tests: synthetic videos, tiny checkpoints and a config that trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sttm
from sttm.data.transforms.processor_config import FAMILIES
from sttm.synth.videos import SynthSettings, make
from tests.helpers import tiny_model, write_recipe


@pytest.fixture(scope="session")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 90 small synthetic videos, of 18 motions."""
    folder = tmp_path_factory.mktemp("motion") / "set"
    return make(folder, SynthSettings(kind="motion", clips=90, seed=0, frames=8, size=32), workers=1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny VideoMAE with other classes; read only."""
    torch.manual_seed(0)
    return sttm.save(tiny_model("videomae"), tmp_path_factory.mktemp("tiny") / "videomae")


@pytest.fixture
def config(motion: Path, tiny: Path, tmp_path: Path) -> Path:
    """A config that trains the tiny VideoMAE on the synthetic videos."""
    return write_recipe(tmp_path, motion, tiny)


@pytest.fixture(params=sorted(FAMILIES))
def merged(request: pytest.FixtureRequest) -> Any:
    """A tiny model of each family with learned mergers."""
    torch.manual_seed(0)
    model = tiny_model(request.param)
    sttm.apply(model, 0.7, learned=True)
    return model
