"""What `sttm bench --pipeline` makes of its timings, and that all three of them do the whole list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sttm import SttmError, models
from sttm.benchmark import pipeline
from sttm.data.loader import read_ahead
from sttm.evaluation.inference import classify


def test_ratio_is_of_the_slower_half_of_each_round(monkeypatch):
    """The machine slows down by half in the second round: medians of speeds would mix the rounds, ratios do not."""
    seconds = iter([[9.0, 9, 9], [0.5, 1.0, 1.25], [1.0, 2.0, 2.5], [0.5, 1.0, 1.25]])
    monkeypatch.setattr(pipeline, "in_turn", lambda runs, turn, device: (next(seconds), []))
    result = pipeline.run([models.DEFAULT], clips=18, rounds=3, workers=1, device="cpu")
    (row,) = result["rows"]
    assert row["ratio"] == {"p10": 0.8, "p50": 0.8, "p90": 0.8}
    assert (row["reading_clips_per_s"], row["model_clips_per_s"], row["evaluation_clips_per_s"]) == (36, 18, 14.4)
    assert row["slower"] == "model" and row["clips"] == 18 and row["reading_threads"] == 1


def test_all_three_do_the_whole_list(monkeypatch):
    seen: dict[str, int] = {"reading": 0, "model": 0}

    def count_clips(videos: Sequence[Any], *args: Any) -> Any:
        seen["reading"] += len(videos)
        return read_ahead(videos, *args)

    def count_results(*args: Any, **options: Any) -> Any:
        for result in classify(*args, **options):
            seen["model"] += result.error is None
            yield result

    def once(runs: Sequence[Callable[[], Any]], turn: int, device: torch.device) -> tuple[list[float], list[Any]]:
        seen.update(reading=0, model=0)
        results = [run() for run in runs]
        assert results[2].clips == 18 and not results[2].errors
        return [1.0, 1.0, 1.0], results

    monkeypatch.setattr(pipeline, "PIXEL_BYTES", 1)  # so that one video in memory stands for all
    for name, replaced in (("read_ahead", count_clips), ("classify", count_results), ("in_turn", once)):
        monkeypatch.setattr(pipeline, name, replaced)
    pipeline.run([models.DEFAULT], clips=18, rounds=1, batch_size=5, device="cpu")
    assert seen == {"reading": 18, "model": 18}


def test_a_list_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "a.mp4").write_text("<html>404</html>")
    (tmp_path / "list.csv").write_text("path,label\na.mp4,one\n")
    with pytest.raises(SttmError, match="none of the videos can be read"):
        pipeline.run([models.DEFAULT], data=tmp_path / "list.csv")
