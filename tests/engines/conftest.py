"""What the tests of engines share: one model and its graph, as tracing a model takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sttm
from sttm.engines.graph import metadata, to_onnx
from tests.helpers import lively, stir


@pytest.fixture(scope="session")
def model() -> Any:
    """Return a small merged VideoMAE that answers differently for every clip."""
    model = lively("videomae")
    sttm.apply(model, compute=0.6, learned=True)
    stir(model)
    return model


@pytest.fixture(scope="session")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ONNX file of that model."""
    path: Path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    to_onnx(model, path, metadata(model, None))
    return path
