"""Evaluation: what the model says of each video, views, errors, classes, processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sttm import SttmError, load
from sttm.config.sections import DataSettings, SplitSettings
from sttm.data.datasets.video_set import Video, VideoSet, read_split
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import read
from sttm.evaluation.evaluate import evaluate, match_classes
from sttm.synth.motions import MOTION_CLASSES
from tests.helpers import FixedModel

#: Videos of the fixture.
VIDEOS = 24


def videos_of(motion_videos: Path) -> VideoSet:
    listed = SplitSettings(list=motion_videos / "validation.json", root=motion_videos / "videos")
    return read_split(DataSettings(validation=listed, labels=motion_videos / "labels.json"), "validation")


def test_predictions_are_what_the_model_says_by_name(motion_model, motion_videos):
    videos, preprocess, model = videos_of(motion_videos), Preprocess.from_folder(motion_model), load(motion_model)
    found = evaluate(model, videos, preprocess)
    for video, row in zip(videos.videos, found.predictions, strict=True):
        (clip,) = read(video.path, preprocess.sampling)
        with torch.no_grad():
            scores = model(preprocess(clip.frames_TCHW)).logits[0].softmax(-1)
        assert row["path"] == video.path
        assert row["score_1"] == pytest.approx(scores.max().item(), abs=1e-6)
        assert row["prediction_1"] == model.config.id2label[int(scores.argmax())]
        assert row["label"] == videos.classes[video.label or 0].upper().replace(" ", "_")
    assert found.clips == found.top1.total == VIDEOS and not found.errors


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_views_are_averaged_for_each_video(motion_videos, motion_model, average):
    draw = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn((VIDEOS * 6, 3), generator=draw)
    position = iter(range(VIDEOS * 6))
    model = FixedModel(lambda pixels: torch.stack([logits[next(position)] for _ in pixels]), ["a", "b", "c"])
    videos = VideoSet(tuple(type(v)(v.path, None) for v in videos_of(motion_videos).videos), (), (), "list", False)
    found = evaluate(
        model, videos, Preprocess.from_folder(motion_model), views=(2, 3), average=average, batch_size=4, workers=1
    )
    views = logits.view(VIDEOS, 6, 3)
    expected = views.softmax(-1).mean(1) if average == "probabilities" else views.mean(1).softmax(-1)
    assert [row["score_1"] for row in found.predictions] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-6)
    assert max(model.calls) <= 4  # many views are no reason to run out of memory
    assert math.isnan(found.top1.share) and found.summary()["top1"] is None and found.clips == VIDEOS


def test_batches_change_nothing(motion_model, motion_videos):
    videos, preprocess, model = videos_of(motion_videos), Preprocess.from_folder(motion_model), load(motion_model)
    one, other = (evaluate(model, videos, preprocess, batch_size=size, workers=2) for size in (1, 7))
    assert [answer.best for answer in one.answers] == [answer.best for answer in other.answers]
    np.testing.assert_array_equal(one.confusion.counts_KK, other.confusion.counts_KK)


def test_scores_that_are_not_finite_are_an_error_of_that_video(motion_videos, motion_model):
    seen = iter(range(VIDEOS))

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(pixels), len(MOTION_CLASSES))
        for row in logits:
            row[0] = math.nan if next(seen) == 3 else 1.0
        return logits

    model, videos = FixedModel(answer, list(MOTION_CLASSES)), videos_of(motion_videos)
    found = evaluate(model, videos, Preprocess.from_folder(motion_model))
    assert found.clips == found.top1.total == VIDEOS - 1
    ((path, error),) = found.errors
    assert path == videos.videos[3].path and "not finite" in error
    assert found.predictions[3]["prediction_1"] is None and "not finite" in found.predictions[3]["note"]


def set_of(classes: tuple[str, ...], labels: list[int | None]) -> VideoSet:
    return VideoSet(tuple(Video("x.mp4", label) for label in labels), classes, (), "list", False)


def test_classes_are_matched_by_name_then_by_number():
    labels = ["riding a bike", "air drumming", "Zumba"]
    assert match_classes(set_of(("zumba", "Riding_a_Bike"), [0, 1]), labels) == {0: 2, 1: 0}
    assert match_classes(set_of(("0", "1", "2"), [2, 0]), labels) == {0: 0, 2: 2}
    assert match_classes(set_of(("skating", "Zumba"), [1, None]), labels) == {1: 2}  # no clip, no question


def test_a_class_that_the_model_does_not_know_is_one_sentence():
    with pytest.raises(SttmError, match=r"no class 'skating' nor 1 other of the data among its 2 \(a, b, "):
        match_classes(set_of(("a", "skating", "sailing"), [0, 1, 2]), ["a", "b"])
    with pytest.raises(SttmError, match="no class '2'"):
        match_classes(set_of(("0", "1", "2"), [2]), ["a", "b"])


def test_a_process_with_fewer_videos_runs_the_model_as_often(motion_videos, motion_model, monkeypatch):
    """World 2 without a second process: what each would do, and that together they are the whole."""
    from sttm.evaluation import evaluate as module

    monkeypatch.setattr(module, "_gathered", lambda answers: answers)
    videos = videos_of(motion_videos)
    videos = VideoSet(videos.videos[:5], videos.classes, (), videos.format, False)
    calls: list[list[int]] = []
    positions: list[int] = []
    for rank in range(2):
        model = FixedModel(lambda pixels: torch.zeros(len(pixels), len(MOTION_CLASSES)), list(MOTION_CLASSES))
        parts: Any = evaluate(
            model, videos, Preprocess.from_folder(motion_model), batch_size=1, rank=rank, world=2, views=(2, 1)
        )
        calls.append(model.calls)
        positions += [answer.position for answer in parts.answers]
    assert len(calls[0]) == len(calls[1]) == 6  # three rounds of two views each, the last of rank 1 is black
    assert sorted(positions) == [0, 1, 2, 3, 4]
