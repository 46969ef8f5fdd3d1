"""Tokens that come back as the first grid: each is what its slot is, and all that follows works as on a plain model."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sttm
from sttm.backbones import backbone_of
from sttm.merging import METHODS, spec_of
from sttm.merging.tokens import compose
from sttm.patching.api import install, plan_of
from tests.helpers import ALL, answer, lively, logits, pixels, stir

#: Those that return tokens, by what they are told to.
OPTIONS = {"vjepa2-features": {"skip_predictor": True}}
TOKENS = ["vjepa2-features", "clip", "siglip", "dinov2-registers", "dinov3", "xclip"]


def tokens_of(family: str, model: Any, clips: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(clips, **OPTIONS.get(family, {})).last_hidden_state
    return out


@pytest.fixture(params=ALL)
def model(request: pytest.FixtureRequest) -> Any:
    return lively(request.param)


def behind(model: Any, clips: Tensor) -> Tensor:
    """Return what the last block gives on."""
    seen: list[Tensor] = []

    def stop(*args: Any) -> None:
        seen.append(args[-1][0] if isinstance(args[-1], tuple) else args[-1])
        raise StopIteration

    handle = backbone_of(model).blocks(model)[-1].register_forward_hook(stop)
    with pytest.raises(StopIteration):
        logits(model, clips)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("method", ["sttm", "tome"])
def test_a_token_is_what_its_slot_is(model: Any, method: str) -> None:
    backbone = backbone_of(model)
    if backbone.aligned and method == "tome":
        pytest.skip("attention over time needs one slot a place and frame")
    if method == "tome" and backbone.layer(backbone.blocks(model)[0]).norm is None:
        pytest.skip("nothing merges inside its blocks")
    grid = backbone.grid(model, backbone.clip_shape(model))
    plain = behind(model, pixels(model))
    plan = sttm.apply(model, 0.6, method, restore=True)
    assert plan.restore and "tokens come back" in str(plan) and plan.compute <= 0.6
    with sttm.trace(model) as maps:
        dense = behind(model, pixels(model))
    sttm.remove(model)
    install(model, replace(plan, restore=False))
    slots = behind(model, pixels(model))
    assert dense.shape == plain.shape != slots.shape
    assert torch.equal(dense[:, : grid.prefix], slots[:, : grid.prefix])
    whole = compose(maps)
    last = plan.mergers[-1]
    slot_BFMC, _ = backbone.split(slots, last.frames, last.tokens, grid.prefix)
    token_BTSC, _ = backbone.split(dense, grid.frames, grid.tokens, grid.prefix)
    for clip, assignment in enumerate(whole.assignment):
        for token, slot in enumerate(assignment.tolist()):
            assert torch.equal(token_BTSC[clip].flatten(0, 1)[token], slot_BFMC[clip].flatten(0, 1)[slot])


def test_multiply_adds_are_counted_with_a_head_on_the_first_grid(model: Any) -> None:
    plan = sttm.apply(model, 0.62, restore=True)
    on_meta = copy.deepcopy(model).to("meta").requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        answer(on_meta, pixels(model, 1).to("meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(plan.macs_after, rel=1e-6)


def test_saved_loaded_threaded_and_removed(model: Any, tmp_path: Path) -> None:
    before = logits(model, pixels(model))
    plan = sttm.apply(model, 0.6, learned=True, restore=True)
    stir(model)
    expected = logits(model, pixels(model))
    loaded = sttm.load(sttm.save(model, tmp_path / "model"))
    assert plan_of(loaded) == plan and torch.equal(logits(loaded, pixels(model)), expected)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: logits(model, pixels(model)), range(8)):
            assert torch.equal(found, expected)
    sttm.remove(model)
    assert torch.equal(logits(model, pixels(model)), before)


@pytest.mark.parametrize("family", TOKENS)
def test_features_have_the_plain_shape_and_are_the_plain_ones_at_compute_one(family: str) -> None:
    model = lively(family)
    plain = tokens_of(family, model, pixels(model))
    sttm.apply(model, compute=1, restore=True)
    assert torch.equal(tokens_of(family, model, pixels(model)), plain)
    sttm.remove(model)
    sttm.apply(model, compute=0.6, restore=True)
    dense = tokens_of(family, model, pixels(model))
    assert dense.shape == plain.shape and not torch.allclose(dense, plain, atol=1e-3)


@pytest.mark.parametrize("family", [name for name in TOKENS if name != "xclip"])
def test_unmerge_from_outside_is_what_the_model_does_inside(family: str) -> None:
    model, twin = lively(family), lively(family)
    install(twin, replace(sttm.apply(model, compute=0.6), restore=True))
    with sttm.trace(model) as maps:
        slots = tokens_of(family, model, pixels(model))
    torch.testing.assert_close(sttm.unmerge(slots, maps), tokens_of(family, twin, pixels(model)))
    with pytest.raises(sttm.SttmError, match="the tokens and the maps of one forward"):
        sttm.unmerge(slots[:, :3], maps)


@pytest.mark.parametrize("family", ["videomae", "siglip", "dinov2"])
def test_a_head_reads_the_same_from_slots_as_from_what_comes_back(family: str) -> None:
    """A mean, or attention, over slots that count by size is that over their tokens."""
    model, twin = lively(family), lively(family)
    plan = sttm.apply(model, compute=0.6)
    install(twin, replace(plan, restore=True))
    torch.testing.assert_close(logits(model, pixels(model)), logits(twin, pixels(model)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if spec_of(name).drops])
def test_a_method_that_leaves_tokens_out_cannot_give_them_back(method: str) -> None:
    with pytest.raises(sttm.SttmError, match="nothing can come back; choose one of sttm"):
        sttm.apply(lively("videomae"), 0.5, method, restore=True)


def test_the_predictor_of_v_jepa_needs_the_first_grid() -> None:
    model = lively("vjepa2-features")
    sttm.apply(model, 0.6)
    for options in ({}, {"skip_predictor": False}, {"skip_predictor": True, "context_mask": [torch.zeros(2, 1)]}):
        with pytest.raises(sttm.SttmError, match=r"skip_predictor=True and no mask, or .*restore=True"):
            model(pixels(model), **options)
    sttm.remove(model)
    sttm.apply(model, 0.6, restore=True)
    assert model(pixels(model)).predictor_output.last_hidden_state.shape == (2, 64, 48)


@pytest.mark.parametrize("family", ["dinov3"])
def test_traces_and_exports(family: str) -> None:
    """As one graph, with a batch of any size."""
    model = lively(family)
    sttm.apply(model, compute=0.6, restore=True)
    clips = pixels(model, 3, seed=5)
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, (), {"pixel_values": pixels(model)}, dynamic_shapes=shapes)
    found = exported.module()(pixel_values=clips).last_hidden_state
    torch.testing.assert_close(found, tokens_of(family, model, clips), rtol=1e-4, atol=1e-5)


def test_gradients_flow_through() -> None:
    model = lively("clip").train()
    sttm.apply(model, 0.6, learned=True, restore=True)
    stir(model)
    nn.functional.mse_loss(model(pixels(model)).last_hidden_state, torch.zeros(2, 37, 48)).backward()
    dead = [n for n, p in model.named_parameters() if ".merger." in n and (p.grad is None or not p.grad.any())]
    assert dead == []
