"""Finding video files, classifying them, and `sttm.predict`."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sttm
from sttm import SttmError, cli
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.evaluation import predict as engine
from tests.helpers import FixedModel


def test_inputs_without_a_video_are_named(clips, monkeypatch, tmp_path):
    monkeypatch.chdir(clips)
    (tmp_path / "empty").mkdir()
    inputs = [str(tmp_path / "empty"), "none-*.mp4", "absent.mp4", "notes.md", "*.mp4", "d*", "x" * 5000]
    notes: list[str] = []
    found = engine.find_videos(inputs, notes.append)
    assert notes == []  # every file that is named is read
    assert [source.path for source in found[2:7]] == [
        "absent.mp4",
        "notes.md",
        "a.mp4",
        "b.mp4",
        "deep/c.mkv",
    ]
    assert [bool(source.error) for source in found] == [True, True, False, False, False, False, False, True]
    assert "no video" in (found[0].error or "") and "no file" in (found[1].error or "")


def test_a_folder_says_what_was_skipped(tmp_path):
    names = ["notes.md", "z.jpg", "deep/labels.csv", "more.txt", ".hidden", "a.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    notes: list[str] = []
    (found,) = engine.find_videos([str(tmp_path)], notes.append)
    assert found.path == str(tmp_path / "a.mp4")
    skipped = "deep/labels.csv, more.txt, notes.md and 2 more"
    assert notes == [f"{tmp_path}: skipped 5 files that cannot be read as videos: {skipped}"]


def test_a_name_with_glob_signs_is_a_file_first(tmp_path):
    odd = tmp_path / "clip[1].mp4"
    odd.touch()
    assert engine.find_videos([str(odd)]) == [Video(str(odd))]


def test_views_average_the_scores(small_model, clips):
    from transformers import VideoMAEForVideoClassification

    model = VideoMAEForVideoClassification.from_pretrained(small_model).eval()
    preprocess = Preprocess.from_folder(small_model)
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, __, output: seen.append(output.logits.softmax(-1)))
    (record,) = engine.predict_files([Video(str(clips / "a.mp4"))], model, preprocess, views=(2, 3), top_k=1)
    assert seen[0].shape == (6, 3)
    assert record["predictions"][0]["score"] == pytest.approx(seen[0].mean(0).max().item(), abs=1e-6)


def classify(sources: list[str], answer: Callable[[torch.Tensor], torch.Tensor], small_model: Path) -> list[dict]:
    preprocess = Preprocess.from_folder(small_model)
    return list(engine.predict_files(map(Video, sources), FixedModel(answer, ["no", "yes"]), preprocess))


def test_scores_that_are_not_finite_are_an_error_of_that_clip(small_model, clips):
    files = [str(clips / "a.mp4"), str(clips / "deep" / "c.mkv")]
    one_bad = torch.tensor([[math.nan, 0.0], [0.0, 1.0]])
    first, second = classify(files, lambda pixels: one_bad, small_model)
    assert "not finite" in first["error"]
    assert second["predictions"][0]["label"] == "yes"


def test_a_model_that_refuses_its_clips_is_one_sentence(small_model, clips):
    def refuse(pixels: torch.Tensor) -> torch.Tensor:
        raise ValueError("Input image size (1*1) doesn't match model (2*2).")

    with pytest.raises(SttmError, match=r"does not take the clips.*doesn't match model"):
        classify([str(clips / "a.mp4")], refuse, small_model)


def test_the_python_call_gives_the_records_of_the_command(small_model, clips, monkeypatch, capsys):
    options = ["--compute", "0.7", "--top-k", "2", "--views", "2x1", "--batch-size", "3", "--dtype", "bf16"]
    monkeypatch.setattr(sys, "argv", ["sttm", "predict", str(clips), "--model", str(small_model), "--json", *options])
    with pytest.raises(SystemExit):
        cli.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with pytest.warns(UserWarning, match=r"skipped 2 files that cannot be read as videos: labels\.csv, notes\.md$"):
        records = sttm.predict(
            [clips], model=small_model, compute=0.7, top_k=2, views=(2, 1), batch_size=3, dtype="bf16", device="cpu"
        )
    found = list(records)
    assert 0.5 < printed[0]["compute"] <= 0.7 and "error" in printed[1] and len(found) == 3
    for one, other in zip(printed, found, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_one_path_is_a_path_and_not_its_letters(small_model, clips):
    (record,) = sttm.predict(str(clips / "a.mp4"), small_model)
    assert record["path"] == str(clips / "a.mp4") and record["compute"] == 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "./nowhere"}, "no model"),
        ({"compute": 2}, "compute=2"),
        ({"dtype": "fp8"}, "unknown dtype"),
        ({"device": "gpu"}, "unknown device"),
        ({"compute": 0.5, "method": "magic"}, "unknown method"),
    ],
)
def test_mistakes_are_told_at_the_call(small_model, clips, changed, sentence):
    options = {"model": small_model} | changed
    with pytest.raises(SttmError, match=sentence):
        sttm.predict([clips], **options)
