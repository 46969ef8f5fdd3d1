"""A page that listens, for all tests of a module."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sttm.serving.engine import Engine, Limits


@pytest.fixture(scope="module")
def served(small_model) -> Iterator[tuple[str, Path]]:
    """The address of a page, and the folder of its uploads."""
    from sttm.serving.app import serving

    with serving(Engine([str(small_model)], Limits(megabytes=1)), 0) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield address, folder
    assert not folder.exists()
    # Gradio leaves event loops to the collector: what that warns of would count against whatever test it runs in.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
