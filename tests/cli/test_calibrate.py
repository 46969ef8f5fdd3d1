"""`sttm calibrate`: a folder of videos in, a model folder out that other commands read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sttm import models
from sttm.patching import api


def test_a_folder_of_videos_is_enough(sttm, motion_model, motion_videos, tmp_path):
    out = tmp_path / "calibrated"
    args = ["calibrate", motion_model, "--data", motion_videos / "videos", "--compute", 0.5, "-o", out]
    outcome = sttm(*args, "--clips", 4, "--candidates", 4)
    assert outcome.code == 0, outcome.err
    plan = api.plan_of(models.load(out))
    assert str(plan) in outcome.out and plan.compute <= 0.5 and not plan.learned
    assert "default" in outcome.out and "calibrated" in outcome.out and str(out) in outcome.out
    assert "few to choose by" in outcome.err
    # The mergers that were chosen are those that predict uses.
    predicted = sttm("predict", motion_videos / "videos", "--model", out, "--json")
    assert {record["compute"] for record in predicted.records} == {plan.compute}


def test_json_and_a_list_with_broken_videos(sttm, motion_model, motion_list, tmp_path):
    args = ["calibrate", motion_model, "--data", motion_list, "--compute", 0.5, "-o", tmp_path / "out", "--json"]
    outcome = sttm(*args, "--method", "tome", "--candidates", 2)
    assert outcome.code == 1 and "broken.mp4" in outcome.err
    facts = json.loads(outcome.out)
    assert facts["clips"] == 21 and facts["candidates"] == 2 and facts["plan"]["method"] == "tome"
    assert 0 <= facts["calibrated"]["kl"] <= facts["default"]["kl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--compute": "0"}, "compute=0"),
        ({"--compute": "0.0001"}, "out of reach"),
        ({"--data": "absent"}, "does not exist"),
        ({"--data": "a.mp4"}, "one video"),
        ({"--method": "patchmerger"}, "has to be trained"),
        ({"-o": "file/below"}, "cannot write"),
    ],
)
def test_mistakes_are_one_sentence(sttm, motion_model, motion_videos, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    options = {"--data": str(motion_videos / "videos"), "--compute": "0.5", "-o": "out", "--clips": "2"} | change
    outcome = sttm("calibrate", motion_model, *(part for pair in options.items() for part in pair))
    assert outcome.code == 2 and not outcome.out
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_a_merged_model_is_refused(sttm, motion_videos, tmp_path):
    args = ["calibrate", "sttm-motion", "--data", motion_videos / "videos", "--compute", 0.5, "-o", tmp_path / "out"]
    outcome = sttm(*args, "--clips", 1)
    assert outcome.code == 2 and "merged already" in outcome.err
