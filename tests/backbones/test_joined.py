"""X-CLIP and VideoPrism, which join frames by the index of their tokens: those come back before that happens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    VideoPrismVideoModel,
    VideoPrismVisionModel,
    XCLIPConfig,
    XCLIPModel,
)

import sttm
from sttm.backbones import backbone_of
from sttm.patching.api import install
from sttm.patching.plan import MergerPlan, Plan
from tests.helpers import lively, pixels, videoprism, xclip

TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)


def shaken(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def xclip_model() -> Any:
    vision = xclip(mit_hidden_size=20, mit_intermediate_size=24, mit_num_hidden_layers=1, mit_num_attention_heads=2)
    text = TEXT | dict(bos_token_id=48, eos_token_id=49)
    sizes: dict[str, Any] = dict(projection_dim=20, prompt_layers=1, prompt_num_attention_heads=2)
    return shaken(XCLIPModel(XCLIPConfig(text_config=text, vision_config=vision.config.to_dict(), **sizes)))


def per_video(model: Any, videos: Tensor, texts: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=texts, pixel_values=videos).logits_per_video
    return out


def keeping(model: Any) -> Plan:
    backbone = backbone_of(model)
    shape = backbone.clip_shape(model)
    tokens = backbone.grid(model, shape).tokens
    return Plan(1, 1, 1, (MergerPlan(1, 1, tokens, 1, tokens),), "sttm", False, shape, "novelty", backbone.family)


def test_the_whole_of_x_clip_by_its_tower() -> None:
    """The model averages patches over frames by index, for its prompts: a merger that reorders them changes nothing."""
    model, videos = xclip_model(), torch.randn(2, 4, 3, 24, 24)
    texts = torch.randint(1, 49, (3, 7)).index_fill(1, torch.tensor([6]), 49)
    before = per_video(model, videos, texts)
    with pytest.raises(
        sttm.SttmError, match=r"its vision_model is of .* XCLIPVisionModel; give that part: model\.vision_model"
    ):
        sttm.apply(model)
    plan = sttm.apply(model.vision_model, compute=1)
    assert torch.equal(per_video(model, videos, texts), before) and plan.restore
    sttm.remove(model.vision_model)
    install(model.vision_model, replace(keeping(model.vision_model), restore=True))
    torch.testing.assert_close(per_video(model, videos, texts), before, rtol=1e-4, atol=1e-5)
    sttm.remove(model.vision_model)
    sttm.apply(model.vision_model, 0.5)
    assert not torch.allclose(per_video(model, videos, texts), before, atol=1e-3)
    sttm.remove(model.vision_model)
    assert torch.equal(per_video(model, videos, texts), before)


def test_equal_patches_merge_without_loss_beside_the_message() -> None:
    """The message of a frame is a key of its own that counts one, beside slots that count by size."""
    model = lively("xclip")
    torch.nn.init.zeros_(model.embeddings.position_embedding.weight)
    looks = torch.randn(3, 3, 4, 4)
    patches = looks[torch.randint(3, (4, 6, 6))]
    # [T H W C 4 4] -> [T C H*4 W*4]
    pictures = patches.permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 24, 24)
    with torch.no_grad():
        before = model(pictures).last_hidden_state
        plan = sttm.apply(model, 0.7)
        assert min(merger.tokens for merger in plan.mergers) >= len(looks)
        torch.testing.assert_close(model(pictures).last_hidden_state, before, rtol=1e-4, atol=1e-4)


def test_x_clip_takes_whole_clips() -> None:
    model = lively("xclip")
    sttm.apply(model, 0.6)
    with pytest.raises(sttm.SttmError, match="clips of 4 pictures each and got 6 pictures"):
        model(torch.randn(6, 3, 24, 24))
    with pytest.raises(sttm.SttmError, match=r"takes clips of \(4, 3, 24, 24\)"):
        sttm.apply(lively("xclip"), 0.6, clip_shape=(2, 3, 24, 24))


@pytest.mark.parametrize("kind", [VideoPrismVisionModel, VideoPrismVideoModel])
def test_videoprism_without_a_classifier(kind: Any) -> None:
    model = shaken(kind(videoprism(num_auxiliary_layers=1).config))
    clips = pixels(model)
    with torch.no_grad():
        before = model(clips).last_hidden_state
        plan = sttm.apply(model, 0.7)
        merged = model(clips).last_hidden_state
    assert plan.restore and merged.shape == before.shape and not torch.allclose(merged, before, atol=1e-3)
    on_meta = shaken(kind(model.config)).to("meta").requires_grad_(False)
    sttm.apply(on_meta, 0.7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_meta(pixels(model, 1).to("meta"))
    assert counter.get_total_flops() / 2 == plan.macs_after


def test_softly_capped_scores_stay_capped_with_sizes() -> None:
    """At a cap that bends the scores of these weights: a merger that keeps all tokens changes nothing."""
    model = shaken(videoprism(attn_logit_softcapping=0.5))
    free = shaken(videoprism(attn_logit_softcapping=50.0))
    clips = pixels(model)
    with torch.no_grad():
        before = model(clips).logits
        assert not torch.allclose(free(clips).logits, before, atol=1e-3)
        install(model, replace(keeping(model), restore=True))
        torch.testing.assert_close(model(clips).logits, before, rtol=1e-4, atol=1e-5)


def test_no_kernel_without_masks_for_capped_scores() -> None:
    model = lively("videoprism")
    sttm.apply(model, 0.6)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(sttm.SttmError, match=r"no exact form of sizes.*choose 'eager'"), torch.no_grad():
        model(pixels(model))
