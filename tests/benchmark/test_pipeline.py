"""What `sttm bench --pipeline` makes of its timings, and that all three of them do the whole list."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sttm import SttmError, cli, models
from sttm.benchmark import pipeline
from sttm.data.loader import read_ahead
from sttm.evaluation.inference import scores


def test_ratio_is_of_the_slower_half_of_each_round(monkeypatch):
    """The machine slows down by half in the second round: medians of speeds would mix the rounds, ratios do not."""
    seconds = iter([[9.0, 9, 9], [0.5, 1.0, 1.25], [1.0, 2.0, 2.5], [0.5, 1.0, 1.25]])
    monkeypatch.setattr(pipeline, "in_turn", lambda runs, turn, device: (next(seconds), []))
    result = pipeline.run([models.DEFAULT], clips=18, rounds=3, workers=1, device=torch.device("cpu"))
    (row,) = result["rows"]
    assert row["ratio"] == {"p10": 0.8, "p50": 0.8, "p90": 0.8}
    assert (row["reading_clips_per_s"], row["model_clips_per_s"], row["evaluation_clips_per_s"]) == (36, 18, 14.4)
    assert row["slower"] == "model" and row["clips"] == 18 and row["reading_threads"] == 1


def test_all_three_do_the_whole_list(monkeypatch):
    seen: dict[str, int] = {"reading": 0, "model": 0}

    def count_clips(videos: Sequence[Any], *args: Any) -> Any:
        seen["reading"] += len(videos)
        return read_ahead(videos, *args)

    def count_scores(model: Any, pixels: list[torch.Tensor], **options: Any) -> Any:
        seen["model"] += len(pixels)
        return scores(model, pixels, **options)

    def once(runs: Sequence[Callable[[], Any]], turn: int, device: torch.device) -> tuple[list[float], list[Any]]:
        seen.update(reading=0, model=0)
        results = [run() for run in runs]
        assert results[2].clips == 18 and not results[2].errors
        return [1.0, 1.0, 1.0], results

    monkeypatch.setattr(pipeline, "KEPT_BYTES", 1)  # so that one video in memory stands for all
    for name, replaced in (("read_ahead", count_clips), ("scores", count_scores), ("in_turn", once)):
        monkeypatch.setattr(pipeline, name, replaced)
    pipeline.run([models.DEFAULT], clips=18, rounds=1, batch_size=5, device=torch.device("cpu"))
    assert seen == {"reading": 18, "model": 18}


def test_a_list_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "a.mp4").write_text("<html>404</html>")
    (tmp_path / "list.csv").write_text("path,label\na.mp4,one\n")
    with pytest.raises(SttmError, match="none of the videos can be read"):
        pipeline.run([models.DEFAULT], data=tmp_path / "list.csv")


def test_the_command_hands_its_options_on(monkeypatch, capsys, tmp_path):
    def run(names: list[str], **options: Any) -> dict[str, Any]:
        expected = {"data": tmp_path, "batch_size": 8, "rounds": 2, "device": torch.device("cpu")}
        assert names == [models.DEFAULT] and options == expected
        return {"machine": "two cores", "rows": [{"model": "m", "ratio": {"p10": 0.8, "p50": 0.9, "p90": 1.0}}]}

    monkeypatch.setattr(pipeline, "run", run)
    command = ["sttm", "bench", "--pipeline", "--data", str(tmp_path), "--rounds", "2", "--device", "cpu"]
    for more, said in ((["--json"], '"ratio"'), ([], "0.8 / 0.9 / 1")):
        monkeypatch.setattr(sys, "argv", command + more)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr().out
        assert not ended.value.code and said in output
        assert not more or json.loads(output)["machine"] == "two cores"


def test_data_without_pipeline_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sttm", "bench", "--data", "list.csv"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "--pipeline" in capsys.readouterr().err
