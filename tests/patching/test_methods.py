"""One contract for every method and family: budgets, counts, and what a reduced model promises."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sttm
from sttm.backbones import backbone_of
from sttm.backbones.base import patches
from sttm.benchmark.shapes import SHAPES
from sttm.merging import METHODS, spec_of
from sttm.patching.api import install, plan_of
from sttm.patching.plan import MergerPlan, Plan
from sttm.visual.regions import slots
from tests.helpers import FAMILIES, answer, lively, logits, pixels

BASELINES = [name for name in METHODS if name != "sttm"]
LEARNED = {name for name in METHODS if spec_of(name).training == "required"}
#: RLT drops none at this budget: all tokens belong to runs.
DROPPING = {"random", "frames", "sta", "drop_merge"}

every_baseline = pytest.mark.parametrize("name", BASELINES)


@cache
def traits(name: str) -> tuple[int, bool, bool]:
    """Return the token frames of a family, whether slots are the same places in each, and whether blocks open up."""
    model = FAMILIES[name]()
    backbone = backbone_of(model)
    layer = backbone.layer(backbone.blocks(model)[0])
    return backbone.grid(model, backbone.clip_shape(model)).frames, backbone.aligned, layer.norm is not None


def served(method: str, name: str) -> bool:
    frames, aligned, opens = traits(name)
    spec = spec_of(method)
    if spec.inside != "none" and not opens:
        return False
    if frames == 1:
        return not spec.whole_frames and spec.reads != "pixels"
    return spec.aligned or not aligned


CASES = [(method, name) for method in BASELINES for name in FAMILIES if served(method, name)]
every_case = pytest.mark.parametrize(("method", "name"), CASES)


@every_case
@pytest.mark.parametrize("compute", [0.62, 0.5, 0.35])
def test_the_budget_is_met_and_counted_as_torch_counts(method: str, name: str, compute: float) -> None:
    model = lively(name).to("meta")
    plan = sttm.apply(model, compute, method, learned=method in LEARNED)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels(model, 1).to("meta"))
    assert plan.compute <= compute
    assert counter.get_total_flops() / 2 == pytest.approx(plan.macs_after, rel=1e-6)


@cache
def on_meta(shape: str) -> Any:
    with torch.device("meta"):
        return SHAPES[shape]().to("meta").eval()


@pytest.mark.parametrize("shape", ["videomae-b", "timesformer-b", "vjepa2-l"])
@every_baseline
def test_real_shapes_reach_every_budget(shape: str, name: str) -> None:
    model = on_meta(shape)
    if shape.startswith("timesformer") and not spec_of(name).aligned:
        with pytest.raises(sttm.SttmError, match=f"time at each place, which {name} does not keep; choose one of sttm"):
            sttm.apply(model, 0.62, name)
        return
    for compute in (0.62, 0.5, 0.35):
        plan = sttm.apply(model, compute, name, learned=name in LEARNED)
        assert compute - 0.01 <= plan.compute <= compute, plan
        sttm.remove(model)


@every_case
def test_a_reduced_model_keeps_every_promise(method: str, name: str) -> None:
    model = lively(name)
    before = logits(model, pixels(model))
    plan = sttm.apply(model, 0.5, method, learned=method in LEARNED)
    with sttm.trace(model) as maps:
        both = logits(model, pixels(model))
    each = torch.cat([logits(model, clip[None]) for clip in pixels(model)])
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, before, atol=1e-5)
    grid = backbone_of(model).grid(model, plan.clip_shape)
    assert [m.grid[1] for m in maps] == [(m.frames, m.tokens) for m in plan.mergers]
    picture = slots(maps, grid, clip=1)
    assert picture.max() < plan.mergers[-1].frames * plan.mergers[-1].tokens * grid.sequences
    assert (picture < 0).any() == (method in DROPPING)
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(model, pixels(model) * 30).isfinite().all()
    half = copy.deepcopy(model).bfloat16()
    assert logits(half, pixels(model).bfloat16()).isfinite().all()
    model.train()
    nn.functional.cross_entropy(answer(model, pixels(model)), torch.tensor([0, 1] * (len(both) // 2))).backward()
    dead = [n for n, p in model.named_parameters() if "predictor" not in n and (p.grad is None or not p.grad.any())]
    assert [n for n in dead if not n.endswith("key.bias")] == []
    sttm.remove(model)
    assert torch.equal(logits(model.eval(), pixels(model)), before)


@every_baseline
def test_only_what_has_parameters_is_learned(name: str) -> None:
    model, twin = lively("vivit"), lively("vivit")
    assert sttm.apply(model, 0.5, name, learned=True).learned == (name in LEARNED)
    assert any(".merger." in n for n, _ in model.named_parameters()) == (name in LEARNED)
    if name not in LEARNED:
        sttm.apply(twin, 0.5, name)
        assert torch.equal(logits(model, pixels(model)), logits(twin, pixels(model)))


@every_baseline
def test_saved_and_loaded_is_exact(name: str, tmp_path: Path) -> None:
    model = lively("videomae")
    plan = sttm.apply(model, 0.5, name, learned=name in LEARNED)
    loaded = sttm.load(sttm.save(model, tmp_path / "reduced"))
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))
    assert plan_of(loaded) == plan


def test_tome_merges_inside_every_block_while_half_is_enough() -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, 0.62, "tome")
    assert [m.layer for m in plan.mergers] == list(range(12)) and all(m.inside for m in plan.mergers)
    taken = [m.frames_before * m.tokens_before - m.tokens for m in plan.mergers]
    assert {m.frames for m in plan.mergers} == {1} and max(taken[:-1]) - min(taken[:-1]) <= 1
    sttm.remove(model)
    assert len(sttm.apply(model, 0.35, "tome").mergers) == 2
    sttm.remove(model)


def test_frames_go_early_and_whole() -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, 0.62, "frames")
    sttm.remove(model)
    assert plan.mergers[0].layer == 0 and {m.tokens for m in plan.mergers} == {196}


def test_one_frame_at_a_time_cannot_lose_frames() -> None:
    with pytest.raises(sttm.SttmError, match="one at a time; choose one of sttm"):
        sttm.apply(lively("timesformer-space"), 0.5, "frames")


def test_drop_merge_drops_first_and_merges_inside_a_later_block() -> None:
    model = on_meta("videomae-b")
    for compute, layers in ((0.62, [0, 6]), (0.2, [0, 3])):
        plan = sttm.apply(model, compute, "drop_merge")
        sttm.remove(model)
        assert [m.layer for m in plan.mergers] == layers and [m.inside for m in plan.mergers] == [False, True]
        left = [m.frames * m.tokens / (m.frames_before * m.tokens_before) for m in plan.mergers]
        assert left[0] == pytest.approx(left[1], abs=0.01)


@pytest.mark.parametrize("family", ["videomae", "vivit", "vjepa2"])
def test_rlt_reads_the_pixels_of_its_tokens(family: str) -> None:
    """Of clips that stand still but for one patch, that patch is kept in every frame, the others once."""
    model = lively(family)
    clip = pixels(model, 1)[:, :1].repeat(1, 8, 1, 1, 1)
    clip[0, :, :, 8:16, 16:24] += torch.arange(8.0)[:, None, None, None]  # row 1, column 2 of a 4 x 4 grid
    merger = MergerPlan(0, 4, 16, 1, 16 + 3)
    install(model, Plan(1.0, 1, 1, (merger,), "rlt", False, (8, 3, 32, 32), None, family))
    with sttm.trace(model) as maps:
        logits(model, clip)
    assert maps[0].meta is not None
    assert maps[0].meta[0].tolist() == [*range(16), 16 + 6, 32 + 6, 48 + 6]
    assert maps[0].size[0].tolist() == [4] * 6 + [1] + [4] * 9 + [1] * 3


def test_rlt_compares_the_ends_of_tokens() -> None:
    """The last frame of a token with the first of the one before it, rows and columns apart."""
    model = lively("videomae")
    backbone = backbone_of(model)
    clip = pixels(model, 2)
    found = patches(clip, backbone.grid(model, (8, 3, 32, 32)))
    for t, y, x in ((0, 0, 0), (1, 2, 3), (3, 3, 1)):
        patch = clip[1, :, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        ends = torch.cat((patch[2 * t].flatten(), patch[2 * t + 1].flatten()))
        assert torch.equal(found[1, t, 4 * y + x], ends)


@pytest.mark.parametrize("inside", [False, True])
def test_size_weighs_attention_as_in_tome(inside: bool) -> None:
    """Of a clip whose tubes come in equal pairs, without positions, nothing is lost when pairs merge."""
    model = FAMILIES["videomae"]().eval()
    model.videomae.embeddings.position_embeddings.zero_()
    looks = torch.randn(32, 2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    # Neighbours in a row look alike: [T H W/2 2 C 8 8] -> [T*2 C H*8 W*8]
    tubes = looks.reshape(4, 4, 2, 1, 2, 3, 8, 8).expand(-1, -1, -1, 2, -1, -1, -1, -1).flatten(2, 3)
    clip = tubes.permute(0, 3, 4, 1, 5, 2, 6).reshape(1, 8, 3, 32, 32)
    before = logits(model, clip)
    merger = MergerPlan(1, 4, 16, 1, 40, inside)
    install(model, Plan(1.0, 1, 1, (merger,), "tome", False, (8, 3, 32, 32), None, "videomae"))
    torch.testing.assert_close(logits(model, clip), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "frames"), [("evit", (1, 1)), ("sta", (8, 4)), ("tokenlearner", (8, 8)), ("pool", (4, 4)), ("rlt", (1,))]
)
def test_windows_are_those_of_the_papers(name: str, frames: tuple[int, ...]) -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, 0.62, name, learned=name in LEARNED)
    sttm.remove(model)
    assert tuple(merger.frames for merger in plan.mergers) == frames


@pytest.mark.parametrize("method", [name for name in METHODS if spec_of(name).training == "never"])
def test_any_method_can_have_the_motion_feature_and_starts_as_without(method: str) -> None:
    model, plain = lively("videomae"), lively("videomae")
    plan = sttm.apply(model, 0.5, method, motion=True)
    assert plan.motion and plan.learned and plan.short_by == 0 and "motion" in str(plan)
    install(plain, replace(plan, motion=False, learned=False))
    clips = pixels(model)
    assert torch.equal(logits(model, clips), logits(plain, clips))
    maps = [value for name, value in model.named_parameters() if name.endswith("motion.map.weight")]
    assert len(maps) == len(plan.mergers)
    with torch.no_grad():
        for value in maps:
            value.normal_()
    assert not torch.allclose(logits(model, clips), logits(plain, clips), atol=1e-3)


def test_the_merger_without_motion_has_nothing_to_learn_and_more_tokens() -> None:
    with_, without = (sttm.apply(lively("videomae"), 0.5, learned=True, motion=motion) for motion in (None, False))
    assert with_.motion and not without.motion and not without.learned
    assert without.mergers[-1].tokens >= with_.mergers[-1].tokens
