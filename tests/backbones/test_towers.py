"""Towers for frames: what is their own beside the contract; heads, pictures of any size, clips of several frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    SiglipConfig,
    SiglipForImageClassification,
)

import sttm
from sttm.backbones import backbone_of
from sttm.merging.tokens import compose
from sttm.patching.api import install
from sttm.patching.plan import MergerPlan, Plan
from tests.helpers import answer, clip, dinov2, dinov2_registers, dinov3, lively, logits, pixels, siglip, vit

TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)


def clip_classifier() -> Any:
    labels: dict[str, Any] = dict(num_labels=5)  # which any config takes
    config = CLIPConfig(text_config=TEXT, vision_config=clip().config.to_dict(), **labels)
    return CLIPForImageClassification(config)


def siglip_classifier() -> Any:
    vision = siglip(vision_use_head=False).config.to_dict()
    labels: dict[str, Any] = dict(num_labels=5)
    return SiglipForImageClassification(SiglipConfig(text_config=TEXT, vision_config=vision, **labels))


#: What `tests.helpers` has no model of: other heads, the plain MLP where that one's is gated and the other way round.
VARIANTS: dict[str, Callable[[], Any]] = {
    "clip without projection": lambda: CLIPVisionModel(clip().config),
    "clip that classifies": clip_classifier,
    "siglip that classifies": siglip_classifier,
    "siglip without a head": lambda: siglip(vision_use_head=False),
    "dinov2 with a plain mlp": lambda: dinov2(use_swiglu_ffn=False, qkv_bias=False),
    "dinov2 with registers and a gated mlp": lambda: dinov2_registers(use_swiglu_ffn=True),
    "dinov3 without registers": lambda: dinov3(num_register_tokens=0, use_gated_mlp=False, image_size=[24, 16]),
}
#: Any of each kind of prefix and head: none and keys, a class token alone, registers, rotary.
TOWERS = ["siglip", "clip", "dinov2-registers", "dinov3"]


def shaken(make: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def keeping(model: Any, clip_shape: tuple[int, int, int, int], windows: int, tokens: int | None = None) -> Plan:
    """Return a plan of one merger before block 1 that keeps so many tokens in each of so many windows."""
    backbone = backbone_of(model)
    grid = backbone.grid(model, clip_shape)
    merger = MergerPlan(1, grid.frames, grid.tokens, windows, tokens or grid.tokens * (grid.frames // windows))
    return Plan(1.0, 1, 1, (merger,), "sttm", False, clip_shape, "novelty", backbone.family)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_proofs_hold_for_every_variant(name: str) -> None:
    model = shaken(VARIANTS[name])
    backbone, clips = backbone_of(model), pixels(model)
    before = logits(model, clips)
    install(model, keeping(model, backbone.clip_shape(model), 1))
    torch.testing.assert_close(logits(model, clips), before, rtol=1e-4, atol=1e-5)
    sttm.remove(model)
    plain = sttm.macs(model)
    plan = sttm.apply(model, 0.6)
    assert not torch.allclose(logits(model, clips), before, atol=1e-5)
    for expected in (plan.macs_after, plain):
        on_meta = shaken(VARIANTS[name]).to("meta").requires_grad_(False)
        sttm.apply(on_meta, 0.6 if expected == plan.macs_after else 1)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            answer(on_meta, pixels(model, 1).to("meta"))
        assert counter.get_total_flops() / 2 == expected
    sttm.remove(model)
    assert torch.equal(logits(model, clips), before)


@pytest.mark.parametrize("name", ["clip that classifies", "siglip that classifies", "dinov2 with a plain mlp"])
def test_a_classifier_reads_means_by_size(name: str) -> None:
    """As the plain head would from tokens that came back."""
    model, twin = shaken(VARIANTS[name]), shaken(VARIANTS[name])
    install(twin, replace(sttm.apply(model, 0.6), restore=True))
    torch.testing.assert_close(logits(model, pixels(model)), logits(twin, pixels(model)), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_a_model_of_pictures_and_texts_is_saved_and_loaded(tmp_path: Any) -> None:
    model = shaken(clip_classifier)
    sttm.apply(model, 0.6, learned=True)
    loaded = sttm.load(sttm.save(model, tmp_path / "model"))
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))


def test_the_tower_of_a_model_of_pictures_and_texts() -> None:
    config = CLIPConfig(text_config=TEXT, vision_config=clip().config.to_dict(), projection_dim=20)
    model = shaken(lambda: CLIPModel(config))
    with pytest.raises(sttm.SttmError, match=r"CLIPModel, but its vision_model is of .* CLIPVisionModel; give"):
        sttm.apply(model)
    pictures, texts = torch.randn(2, 3, 24, 24), torch.randint(50, (3, 7))
    with torch.no_grad():
        before = model(input_ids=texts, pixel_values=pictures).logits_per_image
        sttm.apply(model.vision_model, 0.6)
        merged = model(input_ids=texts, pixel_values=pictures, attention_mask=torch.ones_like(texts)).logits_per_image
        assert merged.shape == before.shape and not torch.allclose(merged, before, atol=1e-3)
        sttm.remove(model.vision_model)
        assert torch.equal(model(input_ids=texts, pixel_values=pictures).logits_per_image, before)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_pictures_of_another_size(family: str) -> None:
    model, wide = lively(family), torch.randn(2, 3, 16, 40)
    before = logits(model, wide)
    shape = (1, 3, 16, 40)
    install(model, keeping(model, shape, 1))
    torch.testing.assert_close(logits(model, wide), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(sttm.SttmError, match=r"merged for clips of \(1, 3, 16, 40\)"):
        logits(model, pixels(model))
    sttm.remove(model)
    with pytest.raises(sttm.SttmError, match=r"\(any frames, 3, multiples of 4, of 4\).*got \(1, 3, 18, 40\)"):
        sttm.apply(model, clip_shape=(1, 3, 18, 40))


def test_merged_patches_turn_as_the_others_in_training() -> None:
    """DINOv3 scales, stretches and shifts all coordinates anew with every forward in training."""
    model = shaken(lambda: dinov3(pos_embed_shift=0.3, pos_embed_jitter=1.5)).train()
    install(model, keeping(model, (1, 3, 24, 24), 1))
    merged: list[Tensor] = []
    plain: list[Tensor] = []
    for answers in (merged, plain):
        for seed in range(3):
            torch.manual_seed(seed)
            answers.append(logits(model, pixels(model)))
        sttm.remove(model) if answers is merged else None
    torch.testing.assert_close(torch.stack(merged), torch.stack(plain), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0], plain[1], atol=1e-3)


# --- clips of several frames ------------------------------------------------------------------------------------------

FRAMES = 4
CLIPS = (FRAMES, 3, 24, 24)


def still(clips: int, frames: int, window: int) -> Tensor:
    """Return pictures in which all frames of a window look alike."""
    looks = torch.randn(clips * frames // window, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    return looks.repeat_interleave(window, dim=0)


@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_frames_that_look_alike_lose_nothing_when_they_become_one(family: str, window: int) -> None:
    """A window of equal frames is one of them: order, sizes, positions and prefix tokens are right, whatever joins."""
    model, pictures = lively(family), still(2, FRAMES, window)
    grid = backbone_of(model).grid(model, CLIPS)
    before = logits(model, pictures)
    plan = keeping(model, CLIPS, FRAMES // window, grid.tokens)
    install(model, plan)
    torch.testing.assert_close(logits(model, pictures), before[::window], rtol=1e-4, atol=1e-5)
    sttm.remove(model)
    install(model, replace(plan, restore=True))
    torch.testing.assert_close(logits(model, pictures), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TOWERS)
def test_clips_do_not_meet(family: str) -> None:
    model = lively(family)
    sttm.apply(model, 0.5, clip_shape=CLIPS, learned=True)
    pictures = torch.randn(3 * FRAMES, 3, 24, 24)
    each = torch.cat([logits(model, clip) for clip in pictures.split(FRAMES)])
    torch.testing.assert_close(logits(model, pictures), each, rtol=1e-4, atol=1e-5)
    for wrong in (pictures[:-1], pictures[:2]):
        with pytest.raises(sttm.SttmError, match=r"clips of 4 pictures each and got \d+ pictures"):
            logits(model, wrong)


@pytest.mark.parametrize("method", ["sttm", "tome", "evit"])
@pytest.mark.parametrize("family", TOWERS)
def test_a_clip_is_planned_and_counted_as_torch_counts(family: str, method: str) -> None:
    model = lively(family).to("meta").requires_grad_(False)
    assert sttm.macs(model, CLIPS) == FRAMES * sttm.macs(model)
    for restore in (False, True):
        plan = sttm.apply(model, 0.6, method, clip_shape=CLIPS, restore=restore)
        assert plan.mergers[0].frames_before == FRAMES > plan.mergers[-1].frames
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            answer(model, torch.empty(2 * FRAMES, 3, 24, 24, device="meta"))
        assert counter.get_total_flops() / 2 == 2 * plan.macs_after and 0.58 < plan.compute <= 0.6
        sttm.remove(model)


@pytest.mark.parametrize("method", ["sttm", "tome"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # use_reentrant has a newer name in some versions
def test_a_clip_in_training_checkpointed_and_traced(method: str) -> None:
    model = lively("dinov3").train()
    model.config.pos_embed_rescale = None  # the same positions in each forward
    plan = sttm.apply(model, 0.5, method, clip_shape=CLIPS, restore=True)
    pictures = torch.randn(2 * FRAMES, 3, 24, 24)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(pictures).last_hidden_state.square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    with sttm.trace(model) as maps:
        logits(model, pictures)
    whole = compose(maps)
    assert whole.assignment.shape == (2, FRAMES * 36) and len(maps) == len(plan.mergers)
    torch.testing.assert_close(whole.size.sum(-1), torch.full((2,), FRAMES * 36.0))


def test_a_clip_exports_with_any_number_of_clips() -> None:
    model = lively("clip")
    sttm.apply(model, 0.5, clip_shape=CLIPS, restore=True)
    pictures = torch.randn(2 * FRAMES, 3, 24, 24)
    shapes = {"pixel_values": {0: FRAMES * torch.export.Dim("clips", min=1, max=16)}}
    exported = torch.export.export(model, (), {"pixel_values": pictures}, dynamic_shapes=shapes)
    more = torch.randn(3 * FRAMES, 3, 24, 24)
    torch.testing.assert_close(exported.module()(pixel_values=more).image_embeds, logits(model, more))


def test_a_picture_model_compares_no_frames() -> None:
    for shape in (None, (4, 3, 32, 32)):
        with pytest.raises(sttm.SttmError, match="one at a time; choose one of sttm"):
            sttm.apply(vit().eval(), 0.5, "frames", clip_shape=shape)
