"""A run over a corpus in this process: the stages as they are, without Ray between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sttm.corpus import run as engine
from sttm.corpus.stages import Answer, Decode, groups_of
from sttm.data.loader import read_crops


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., engine.Outcome]:
    """Return a function that runs a request; `until` is called with each group before it is answered."""
    pytest.importorskip("pyarrow")

    @contextmanager
    def no_ray(address: str | None, memory_gib: float) -> Iterator[Any]:
        yield SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})

    @contextmanager
    def no_process(workers: int, limits: Any) -> Iterator[Any]:
        yield read_crops

    monkeypatch.setattr(engine, "running", no_ray)
    monkeypatch.setattr("sttm.corpus.stages.isolated", no_process)

    def run(
        source: Path, output: Path, *, until: Callable[[int], None] = lambda group: None, order: int = 1, **options: Any
    ) -> engine.Outcome:
        request = engine.Request(source, output, **{"batch_size": 2, "part": 4, **options})

        def results(ray: Any, missing: list[int], settings: Any, *_: Any) -> Iterator[Any]:
            decode, answer = Decode(str(output), settings, 60.0, 4.0), Answer(settings, None)
            groups = [group for part in missing for group in groups_of(part, settings)]
            for group in groups[::order]:
                until(group)
                made = answer(decode({"group": group}))
                yield made
                yield made  # as Ray does where an actor died after it had answered

        monkeypatch.setattr(engine, "_results", results)
        return engine.run(request)

    return run
