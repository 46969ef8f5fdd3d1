"""Two processes for the list."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.ecosystem.processes import join


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """Two processes for all cells: to start them takes longer than what they run."""
    spawn = multiprocessing.get_context("spawn")
    store = str(tmp_path_factory.mktemp("two") / "store")
    with ProcessPoolExecutor(2, spawn, initializer=join, initargs=(spawn.Value("i", 0), store)) as pool:
        yield pool
