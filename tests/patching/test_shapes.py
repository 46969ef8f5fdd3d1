"""Clips of another shape, heads that read one token, grids too small for a target: right, or one sentence."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sttm
from sttm.backbones import backbone_of
from sttm.merging import METHODS, spec_of
from sttm.merging.tokens import compose
from sttm.patching import api
from sttm.patching.plan import MergerPlan, Plan
from tests.helpers import CLIP, FAMILIES, lively, logits, pixels, videomae


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("axis", "length"), [("frames", 4), ("frames", 16), ("height", 24), ("width", 40)])
def test_another_shape_is_one_sentence(family: str, axis: str, length: int) -> None:
    model = lively(family)
    sttm.apply(model, compute=0.6)
    backbone = backbone_of(model)
    if backbone.pictures and axis == "frames":
        pytest.skip("a picture has one frame")
    frames, channels, height, width = backbone.clip_shape(model)
    lengths = {"frames": frames, "channels": channels, "height": height, "width": width, axis: length}
    other = torch.randn(backbone.pixels_shape(1, tuple(lengths.values())))  # type: ignore[arg-type]
    base = getattr(model, model.base_model_prefix)
    for forward in (model, base):
        with pytest.raises(sttm.SttmError, match=r"takes clips of|merged for clips of") as caught:
            forward(other)
        assert "\n" not in str(caught.value) and not str(caught.value).endswith(".")
    with pytest.raises(sttm.SttmError, match="takes pixels of"):
        model(pixels(model)[0])
    assert logits(model, pixels(model)).shape[1] == 5  # and the model still answers


def test_frames_that_fill_no_tubelet_are_left_out_as_the_plain_model_does() -> None:
    model = lively("vjepa2")
    clip = torch.randn(1, 17, *CLIP[1:])
    assert torch.equal(logits(model, clip), logits(model, clip[:, :16]))
    plan = sttm.apply(model, compute=0.6, clip_shape=(17, *CLIP[1:]))
    assert plan.mergers[0].frames_before == 8
    assert torch.equal(logits(model, clip), logits(model, clip[:, :16]))
    sttm.remove(model)
    assert sttm.macs(model, (17, *CLIP[1:])) == sttm.macs(model, (16, *CLIP[1:]))


def by_first_token() -> Any:
    torch.manual_seed(0)
    model = videomae(use_mean_pooling=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("method", [name for name in METHODS if not spec_of(name).drops])
def test_a_head_on_the_first_token_reads_the_slot_it_went_to(method: str) -> None:
    model = by_first_token()
    assert sttm.macs(model) > 0
    sttm.apply(model, compute=0.6, method=method, learned=True)
    with sttm.trace(model) as maps, torch.no_grad():
        hidden = model.videomae(pixels(model))[0]
        first = compose(maps).assignment[:, 0]
        expected = nn.functional.linear(hidden[torch.arange(2), first], model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(logits(model, pixels(model)), expected)


def test_a_head_on_the_first_token_changes_nothing_where_nothing_merges() -> None:
    """A merger that keeps every token reorders them."""
    model = by_first_token()
    before = logits(model, pixels(model))
    mergers = (MergerPlan(1, 4, 16, 2, 32), MergerPlan(3, 2, 32, 2, 32))
    api.install(model, Plan(1.0, 1, 1, mergers, "sttm", False, CLIP, "stride", "videomae"))
    torch.testing.assert_close(logits(model, pixels(model)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if spec_of(name).drops])
def test_a_head_on_the_first_token_needs_a_method_that_keeps_it(method: str) -> None:
    with pytest.raises(sttm.SttmError, match="first token"):
        sttm.apply(by_first_token(), compute=0.6, method=method)


def test_a_grid_too_small_for_the_target_says_by_how_much_it_misses() -> None:
    model = videomae(use_mean_pooling=True)
    tiny = type(model)(type(model.config)(**{**model.config.to_dict(), "image_size": 16, "num_frames": 2}))
    with pytest.warns(UserWarning, match="below it") as caught:
        plan = sttm.apply(tiny, compute=0.9)
    assert plan.short_by == pytest.approx(0.9 - plan.compute) and plan.short_by > 0.01
    assert f"{plan.short_by:.3f} below" in str(plan) and f"{plan.short_by:.3f} below" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sttm.apply(model, compute=0.6).short_by == 0
