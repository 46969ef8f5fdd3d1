"""Plans on the real shapes: every compute target met from below, within 0.01, and counted as torch counts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoPrismVisionConfig,
    VideoPrismVisionModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    XCLIPVisionConfig,
    XCLIPVisionModel,
)

import sttm
from sttm.backbones import backbone_of
from sttm.benchmark.shapes import SHAPES as STANDARD
from sttm.patching.schedule import find_plan
from tests.helpers import answer

TARGETS = (0.9, 0.8, 0.7, 0.62, 0.5, 0.4, 0.3, 0.2)
SHAPES: dict[str, Callable[[], Any]] = {
    **STANDARD,
    "timesformer-b 16x448": lambda: TimesformerForVideoClassification(TimesformerConfig(num_frames=16, image_size=448)),
    "vjepa2-l 64 frames": lambda: VJEPA2ForVideoClassification(VJEPA2Config(frames_per_clip=64)),
}


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return SHAPES[name]().to("meta").eval()


@pytest.mark.parametrize("learned", [False, True], ids=["as-is", "learned"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_target_is_met_from_below(name: str, learned: bool) -> None:
    model = on_meta(name)
    plain = sttm.macs(model)
    for target in TARGETS:
        plan = sttm.apply(model, compute=target, learned=learned)
        assert target - 0.01 <= plan.compute <= target, plan
        assert plan.compute == plan.macs_after / plan.macs_before and plan.macs_before == plain
        sttm.remove(model)


#: Real sizes of the towers and feature models: config, and what it is.
TOWERS: dict[str, Callable[[], Any]] = {
    "vjepa2-g features": lambda: VJEPA2Model(
        VJEPA2Config(hidden_size=1408, num_hidden_layers=40, num_attention_heads=22)
    ),
    "clip-l 336": lambda: CLIPVisionModel(
        CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                         image_size=336, patch_size=14)
    ),
    "siglip-so400m 384": lambda: SiglipVisionModel(
        SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
                           image_size=384, patch_size=14)
    ),
    "dinov2-g registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, image_size=518,
                                  patch_size=14, use_swiglu_ffn=True)
    ),
    "dinov3-l": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                        num_register_tokens=4)
    ),
    "xclip-b": lambda: XCLIPVisionModel(XCLIPVisionConfig(patch_size=16)),
    "videoprism-b": lambda: VideoPrismVisionModel(VideoPrismVisionConfig()),
}  # fmt: skip


@pytest.mark.parametrize(("name", "frames"), [*((name, 1) for name in TOWERS), ("dinov3-l", 8)])
def test_towers_of_real_size_meet_targets_as_torch_counts(name: str, frames: int) -> None:
    with torch.device("meta"):
        model = TOWERS[name]().eval().requires_grad_(False)
    backbone = backbone_of(model)
    own = backbone.clip_shape(model)
    shape = (frames, *own[1:]) if frames > 1 else own
    for target in (0.62, 0.4):
        plan = sttm.apply(model, target, clip_shape=shape, restore=target < 0.5)
        assert target - 0.01 <= plan.compute <= target, plan
        if target == 0.62:
            pixels = torch.empty(backbone.pixels_shape(1, shape), device="meta")
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                answer(model, pixels)
            assert counter.get_total_flops() / 2 == plan.macs_after
        sttm.remove(model)


@pytest.mark.parametrize("name", SHAPES)
def test_real_shapes_are_counted_as_torch_counts(name: str) -> None:
    model = on_meta(name)
    pixels = torch.empty(1, *backbone_of(model).clip_shape(model), device="meta")

    def counted() -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(pixels)
        return counter.get_total_flops() / 2

    assert sttm.macs(model) == pytest.approx(counted(), rel=1e-6)
    sttm.apply(model, compute=0.3)
    assert sttm.macs(model) == pytest.approx(counted(), rel=1e-6)


def test_videomae_b_costs_what_papers_say() -> None:
    assert sttm.macs(on_meta("videomae-b")) / 1e9 == pytest.approx(180.3, abs=0.3)


def test_an_unreachable_target_names_the_least_and_the_advice_works() -> None:
    model = on_meta("videomae-b")
    with pytest.raises(sttm.SttmError, match=r"out of reach.*ask for 0\.\d\d or more") as caught:
        sttm.apply(model, compute=0.005)
    least = float(str(caught.value).split("ask for ")[1].split(" ")[0])
    assert sttm.apply(model, compute=least).compute <= least


def test_frames_beyond_the_config_are_planned_for() -> None:
    model = on_meta("vjepa2-l")
    plan = sttm.apply(model, compute=0.62, clip_shape=(32, 3, 256, 256))
    assert plan.mergers[0].frames_before == 16 and plan.compute <= 0.62
    assert sttm.macs(model) == plan.macs_after
    with pytest.raises(sttm.SttmError, match=r"sttm\.remove"):
        sttm.macs(model, clip_shape=(16, 3, 256, 256))


def test_printed_plan_is_a_table() -> None:
    text = str(sttm.apply(on_meta("videomae-b"), compute=0.62))
    assert "180.345" in text and "8 x 196 -> 4 x" in text and len(text.splitlines()) == 4


def test_layers_and_window_can_be_given() -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, compute=0.62, layers=[2, 5, 9], window=4)
    assert [m.layer for m in plan.mergers] == [2, 5, 9]
    assert [(m.frames_before, m.frames) for m in plan.mergers] == [(8, 2), (2, 2), (2, 2)]
    assert 0.61 <= plan.compute <= 0.62
    sttm.remove(model)
    within = sttm.apply(model, compute=0.62, learned=True, layers=[4], window=1)
    assert [(m.layer, m.frames_before, m.frames) for m in within.mergers] == [(4, 8, 8)]


@pytest.mark.parametrize(("method", "compute"), [("sttm", 0.5), ("tome", 0.7)])
def test_shares_split_the_reduction_at_the_same_compute(method: str, compute: float) -> None:
    model = on_meta("videomae-b")
    taken = []
    for shares in ((3, 1), None, (1, 3)):
        plan = find_plan(backbone_of(model), model, compute, method, shares=shares)
        assert compute - 0.01 <= plan.compute <= compute, plan
        first, last = plan.mergers[0], plan.mergers[-1]
        kept = [m.frames * m.tokens / (m.frames_before * m.tokens_before) for m in (first, last)]
        taken.append(kept[0] / kept[1])
    # ToMe splits the tokens taken over twelve blocks, where one takes few.
    step = 0.9 if method == "sttm" else 0.97
    assert taken[0] < step * taken[1] < step**2 * taken[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(layers=[]), "0 to 11 that rise"),
        (dict(layers=[3, 3]), "0 to 11 that rise"),
        (dict(layers=[6, 3]), "0 to 11 that rise"),
        (dict(layers=[12]), "0 to 11 that rise"),
        (dict(window=3), "choose one of 1, 2, 4, 8"),
        (dict(window=0), "choose one of 1, 2, 4, 8"),
        (dict(method="frames", layers=[3]), "leave layers and window out"),
        (dict(layers=[11], compute=0.3), "out of reach"),
    ],
)
def test_places_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = on_meta("videomae-b")
    with pytest.raises(sttm.SttmError, match=message):
        sttm.apply(model, **arguments)
    assert sttm.apply(model).compute <= 0.62
