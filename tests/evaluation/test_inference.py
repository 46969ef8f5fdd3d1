"""The batch loop: what it batches, what it yields for each video, and what it makes of errors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sttm import SttmError
from sttm.data.loader import Sample
from sttm.evaluation.inference import NOT_FINITE, classify, forward, scores, videos_at_once
from tests.helpers import FixedModel, lively, pixels

LABELS = ["no", "yes"]


def sample(index: int, value: float | None, views: int = 1) -> Sample:
    """Return a sample whose pixels are `value`, or one that could not be read; its two seconds are for reading."""
    pixels_VTCHW = None if value is None else torch.full((views, 1, 1, 1, 1), value)
    error = "cannot be read" if value is None else None
    return Sample(index, f"{index}.mp4", None, pixels_VTCHW, (), error, 2.0, 1)


def by_value() -> FixedModel:
    """Return a model whose logit for "yes" is the value of the pixels."""
    return FixedModel(lambda clips: torch.stack([torch.zeros(len(clips)), clips.flatten(1)[:, 0]], 1), LABELS)


def test_every_video_gets_one_result_in_order():
    model, values = by_value(), [1.0, None, -2.0, math.nan, 3.0]
    found = list(classify(model, [sample(*item) for item in enumerate(values)], batch_size=2))
    assert [result.sample.index for result in found] == [0, 1, 2, 3, 4]
    assert [result.error for result in found] == [None, "cannot be read", None, NOT_FINITE, None]
    for result, value in zip(found, values, strict=True):
        assert (result.scores_K is None) == (result.error is not None)
        if result.scores_K is not None and value is not None:
            assert result.scores_K[1].item() == pytest.approx(1 / (1 + math.exp(-value)))
    assert model.calls == [1, 2, 1]  # what cannot be read takes a place in its batch, and costs no forward
    assert found[1].seconds == 2 and all(result.seconds >= 2 for result in found)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_views_are_averaged_and_batches_bounded(average):
    model = FixedModel(lambda clips: torch.stack([clips.flatten(1)[:, 0], -clips.flatten(1)[:, 0]], 1), LABELS)
    views_V = torch.tensor([0.5, -1.0, 3.0])
    one = Sample(0, "a.mp4", None, views_V.reshape(3, 1, 1, 1, 1), (), None, 0.0, 1)
    (result,) = classify(model, [one], views=(1, 3), average=average, batch_size=2)
    logits_VK = torch.stack([views_V, -views_V], 1)
    expected = logits_VK.softmax(-1).mean(0) if average == "probabilities" else logits_VK.mean(0).softmax(-1)
    assert result.scores_K is not None and torch.allclose(result.scores_K, expected) and model.calls == [2, 1]


@pytest.mark.parametrize(
    ("batch_size", "views", "videos"), [(8, (1, 1), 8), (8, (1, 3), 2), (8, (5, 3), 1), (1, (1, 1), 1)]
)
def test_a_batch_holds_as_many_videos_as_their_views_allow(batch_size, views, videos):
    assert videos_at_once(batch_size, views) == videos


def test_a_set_number_of_batches_runs_the_filler_where_nothing_is_left():
    model, advanced = by_value(), list[int]()
    samples, filler = [sample(0, 1.0), sample(1, None), sample(2, 1.0)], torch.zeros(1, 1, 1, 1, 1)
    found = classify(model, samples, filler_VTCHW=filler, batch_size=1, batches=4, advance=advanced.append)
    assert len(list(found)) == 3
    assert model.calls == [1, 1, 1, 1] and advanced == [1, 1, 1, 0]


def test_samples_are_taken_batch_by_batch():
    taken: list[int] = []

    def endless() -> Iterator[Sample]:
        while True:
            taken.append(len(taken))
            yield sample(taken[-1], 0.0)

    results = classify(by_value(), endless(), batch_size=3)
    next(results)
    assert len(taken) == 3


def test_forward_is_the_models_own(monkeypatch):
    model = lively("videomae")
    clips_BTCHW = pixels(model)
    expected = model(clips_BTCHW).logits
    found = forward(model, clips_BTCHW)
    assert torch.equal(found, expected) and not found.requires_grad
    assert forward(model, clips_BTCHW, torch.bfloat16).dtype == torch.bfloat16


def test_a_full_memory_is_one_sentence():
    def full(clips: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SttmError, match="2 clips at once do not fit into the memory of cpu; use a smaller"):
        scores(FixedModel(full, LABELS), [torch.zeros(3, 1, 1, 1, 1)], "probabilities", 2, torch.float32)


def test_frame_by_frame_outputs_are_averaged():
    class ByFrame(nn.Module):
        """A model with an output for each frame, as a space-only TimeSformer."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, clips: torch.Tensor) -> object:
            return type("Output", (), {"logits": clips.flatten(0, 1).flatten(1)})

    clip_VTCHW = torch.tensor([[0.0, 2], [4, 0]]).reshape(1, 2, 1, 1, 2)
    (scores_K,) = scores(ByFrame(), [clip_VTCHW], "probabilities", 8, torch.float32)
    assert torch.allclose(scores_K, clip_VTCHW.reshape(2, 2).softmax(-1).mean(0))
