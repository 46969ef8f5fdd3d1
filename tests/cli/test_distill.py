"""`sttm distill`: whole commands on synthetic videos without labels."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from sttm import models
from sttm.patching import api
from sttm.synth.videos import SynthSettings, make

SHORT = ["--steps", 2, "--batch-size", 4, "--set", "run.log_every=1", "--set", "data.workers=0"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = models.load(folder).state_dict()
    return found


def test_videos_without_labels_are_enough(sttm, motion_model, motion_videos, tmp_path):
    out = tmp_path / "out"
    args = ["distill", motion_model, "--data", motion_videos / "videos", "--compute", 0.5, "-o", out, *SHORT]
    outcome = sttm(*args)
    assert outcome.code == 0, outcome.err
    assert re.search(r"before: agreement with plain [\d.]+% \([\d.]+% to [\d.]+%\), KL [\d.]+\n", outcome.out)
    for text in ("step 2/2: loss", "after: agreement", "a minute, on 2 held-out clips"):
        assert text in outcome.out
    plan = api.plan_of(models.load(out))
    assert plan.compute <= 0.5 and plan.learned
    results = json.loads((out / "results.json").read_text())
    assert (results["clips"], results["held_out"], results["steps"]) == (22, 2, 2)
    assert "top1" not in results["before"]  # nothing says what is right
    # The model keeps its head and classes, and the motion map was trained.
    trained, plain = models.load(out), models.load(motion_model)
    assert trained.config.id2label == plain.config.id2label
    assert any(".merger.motion" in name and value.any() for name, value in trained.state_dict().items())
    # The same command once more changes nothing, and the same run elsewhere gives the same model.
    again = sttm(*args)
    assert again.code == 0 and "resumed after step 2" in again.out
    args[args.index(out)] = tmp_path / "other"
    assert sttm(*args).code == 0
    one, other = weights(out), weights(tmp_path / "other")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_calibrated_model_keeps_its_plan_and_folders_of_classes_give_top1(sttm, motion_model, clips, tmp_path):
    names = [name.lower().replace("_", " ") for name in list(models.load(motion_model).config.id2label.values())[:2]]
    for name in names:
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "videos" / name / f"{number}.mp4").symlink_to(clips / "a.mp4")
    data, calibrated, out = tmp_path / "videos", tmp_path / "calibrated", tmp_path / "out"
    args = ["--data", data, "--compute", 0.5, "--method", "tome", "--clips", 2, "--candidates", 2]
    assert sttm("calibrate", motion_model, *args, "-o", calibrated).code == 0
    outcome = sttm("distill", calibrated, "--data", data, "-o", out, *SHORT, "--json")
    assert outcome.code == 0, outcome.err
    assert api.plan_of(models.load(out)).mergers == api.plan_of(models.load(calibrated)).mergers
    end = outcome.records[-1]
    assert end["event"] == "distilled" and {"top1_points", "agreement_points_per_minute"} <= end.keys()
    for name, when in itertools.product(("agreement", "top1"), ("before", "after")):
        low, high = end[when][f"{name}_interval"]
        assert 0 <= low <= end[when][name] <= high <= 1 and high - low > 0.5  # one video


def test_a_model_that_got_worse_is_said(sttm, motion_model, motion_videos, tmp_path):
    args = ["distill", motion_model, "--data", motion_videos / "videos", "--compute", 0.5, *SHORT, "--json"]
    for lr, worse in ((1e-9, False), (1.0, True)):
        outcome = sttm(*args, "--lr", lr, "-o", tmp_path / str(lr))
        assert outcome.code == 0, outcome.err
        end = outcome.records[-1]
        assert (end["after"]["kl"] > end["before"]["kl"] + 0.1) == worse
        assert ("less like its plain self than before; give a lower --lr" in outcome.err) == worse


def test_minutes_become_steps_and_stay(sttm, motion_model, motion_videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    args = ["distill", motion_model, "--data", motion_videos / "videos", "--compute", 0.5, "-o", out, *SHORT[2:]]
    assert sttm(*args, "--minutes", 0.01).code == 0
    steps = json.loads((out / "results.json").read_text())["steps"]
    monkeypatch.setattr("sttm.training.distill._steps_within", lambda *args: steps + 1)
    assert sttm(*args, "--minutes", 0.01).code == 0
    assert json.loads((out / "results.json").read_text())["steps"] == steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--compute": "1"}, "nothing to distil"),
        ({"--steps": "3", "--minutes": "1"}, "give one of them"),
        ({"--data": "absent"}, "does not exist"),
        ({"--data": "single"}, "at least two"),
        ({"--set": "distillation.weight=0.5"}, "distillation.weight=1"),
        ({"--set": "model.start=null"}, "start"),
    ],
)
def test_mistakes_are_one_sentence(sttm, motion_model, motion_videos, clips, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Path("single").mkdir()
    Path("single/a.mp4").symlink_to(clips / "a.mp4")
    options = {"--data": str(motion_videos / "videos"), "--compute": "0.5", "-o": "out"} | change
    outcome = sttm("distill", motion_model, *(part for pair in options.items() for part in pair))
    assert outcome.code == 2 and not outcome.out
    assert message in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.extended
@pytest.mark.timeout(900)
def test_it_wins_agreement_back(sttm, tmp_path, monkeypatch):
    """The bundled plain model at 0.15, on synthetic videos of its own kind; half are held out: 30 would say nothing."""
    monkeypatch.setattr("sttm.training.distill.ONE_IN", 2)
    monkeypatch.setattr("sttm.training.distill.MOST_HELD_OUT", 300)
    videos = make(tmp_path / "motion", SynthSettings("motion", 600, seed=11, frames=16, size=56), workers=1) / "videos"
    args = ["distill", "sttm-motion-plain", "--data", videos, "--compute", 0.15, "-o", tmp_path / "out", "--json"]
    outcome = sttm(*args, "--steps", 150, "--batch-size", 8, "--lr", 5e-4, "--set", "data.workers=0")
    assert outcome.code == 0, outcome.err
    end = outcome.records[-1]
    assert end["held_out"] == 300 and end["clips"] == 300
    assert end["after"]["kl"] < 0.75 * end["before"]["kl"]
    assert end["after"]["agreement"] > end["before"]["agreement"]
