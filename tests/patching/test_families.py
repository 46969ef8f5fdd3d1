"""One contract for every family: what `apply`, `remove`, `trace` and `macs` promise, on small models of each."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sttm
from sttm.backbones import backbone_of
from sttm.backbones.base import Grid
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import read
from sttm.evaluation.predict import find_videos, predict_files
from sttm.patching.api import install
from sttm.patching.plan import MergerPlan, Plan
from sttm.synth.clips import render
from sttm.synth.videos import encode
from tests.helpers import CLIP, DISTINCT, FAMILIES, MORE, answer, lively, logits, pixels, stir, vjepa2

MODES = {"as-is": False, "learned": True}
CASES = [(family, mode) for family in FAMILIES for mode in MODES]
#: What takes long runs on these alone, as `tests.helpers.MORE` says.
COSTLY = [*CASES, *((family, "learned") for family in DISTINCT)]
usual = pytest.mark.parametrize("case", CASES, indirect=True, ids="-".join)
costly = pytest.mark.parametrize("case", COSTLY, indirect=True, ids="-".join)


@pytest.fixture(params=[*CASES, *((family, "learned") for family in MORE)], ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def model(case: tuple[str, str]) -> Any:
    return lively(case[0])


@pytest.fixture
def learned(case: tuple[str, str]) -> bool:
    return MODES[case[1]]


def plain_grid(model: Any) -> Grid:
    """Return the token grid of the clips that a model is configured for."""
    backbone = backbone_of(model)
    return backbone.grid(model, backbone.clip_shape(model))


def snapshot(model: Any) -> tuple[object, ...]:
    """Everything that an edit could change: types, tensors, hooks, instance attributes and settings."""
    modules = tuple(
        (name, type(module), tuple(module._forward_pre_hooks), tuple(module._forward_hooks), frozenset(vars(module)))
        for name, module in model.named_modules()
    )
    tensors = tuple((name, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items())
    return modules, tensors, model.config.to_json_string(), model.config._attn_implementation


def test_compute_one_is_bit_identical(model: Any, learned: bool) -> None:
    before = logits(model, pixels(model))
    plan = sttm.apply(model, compute=1, learned=learned)
    assert plan.mergers == () and plan.compute == 1 and plan.macs_after == plan.macs_before
    assert torch.equal(logits(model, pixels(model)), before)


def test_remove_is_exact(model: Any, learned: bool) -> None:
    before, state = logits(model, pixels(model)), snapshot(model)
    sttm.apply(model, compute=0.6, learned=learned)
    assert snapshot(model) != state
    assert not torch.allclose(logits(model, pixels(model)), before, atol=1e-5)
    sttm.remove(model)
    assert snapshot(model) == state
    assert torch.equal(logits(model, pixels(model)), before)


@pytest.mark.parametrize("window", [1, 2])
def test_a_merger_that_keeps_every_token_changes_nothing(model: Any, learned: bool, window: int) -> None:
    """It reorders them: so order, positions (rotary ones too), class token, sizes and pooling must all be carried."""
    backbone = backbone_of(model)
    grid = plain_grid(model)
    if grid.frames % window or (window > 1 and backbone.aligned):
        pytest.skip("no such window, or attention over time needs one slot a place and frame")
    frames, tokens = grid.frames // window, grid.tokens * window
    mergers = (
        MergerPlan(1, grid.frames, grid.tokens, frames, tokens),
        MergerPlan(3, frames, tokens, frames, tokens),
    )
    before = logits(model, pixels(model))
    clip_shape = backbone.clip_shape(model)
    plan = Plan(1.0, 1, 1, mergers, "sttm", learned, clip_shape, "stride", backbone.family)
    install(model, replace(plan, restore=backbone.restores))
    with sttm.trace(model) as maps:
        torch.testing.assert_close(logits(model, pixels(model)), before, rtol=1e-4, atol=1e-5)
    # Not vacuous: the tokens did change places.
    assert not torch.equal(maps[0].assignment[0], torch.arange(grid.frames * grid.tokens))


@pytest.mark.parametrize("family", ["videomae", "vivit", "timesformer-joint", "vjepa2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_merging_equal_tokens_changes_nothing(family: str, attention: str) -> None:
    """Of clips made of three looks, without positions, every slot holds copies of one: sizes must make up for them."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    if family != "timesformer-joint":
        model.set_attn_implementation(attention)
    for name, parameter in model.named_parameters():
        # V-JEPA 2's rotary positions only turn queries and keys: without queries they tell nothing.
        rotary = family == "vjepa2" and "encoder" in name and ".query." in name
        if rotary or "position_embeddings" in name or "time_embeddings" in name:
            nn.init.zeros_(parameter)
    if family == "videomae":
        model.videomae.embeddings.position_embeddings.zero_()
    make = torch.Generator().manual_seed(4)
    looks = torch.randn(3, 2, 3, 8, 8, generator=make)
    tubes = looks[torch.randint(3, (4, 4, 4), generator=make)]
    # [T H W 2 C 8 8] -> [T*2 C H*8 W*8]; TimeSformer's patches are single frames, so both of a tube look alike
    tubes = tubes[:, :, :, :1].expand(-1, -1, -1, 2, -1, -1, -1) if family == "timesformer-joint" else tubes
    clip = tubes.permute(0, 3, 4, 1, 5, 2, 6).reshape(1, *CLIP)
    before = logits(model, clip)
    plan = sttm.apply(model, compute=0.75)
    assert min(merger.tokens for merger in plan.mergers) >= len(looks)
    torch.testing.assert_close(logits(model, clip), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compute", [0.8, 0.62, 0.4])
def test_plan_is_met_and_tokens_are_as_planned(model: Any, learned: bool, compute: float) -> None:
    plan = sttm.apply(model, compute=compute, learned=learned)
    assert plan.compute <= compute
    backbone = backbone_of(model)
    grid = plain_grid(model)
    seen: list[int] = []
    blocks: Any = backbone.blocks(model)
    for block in blocks:
        # The norm before the block's MLP sees the tokens that the merger in front of the block left.
        norm = backbone.layer(block).norm or block.layernorm_after
        norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    logits(model, pixels(model))
    expected, tokens, mergers = [], grid.prefix + grid.frames * grid.tokens, {m.layer: m for m in plan.mergers}
    for number in range(len(seen)):
        if number in mergers:
            tokens = grid.prefix + mergers[number].frames * mergers[number].tokens
        expected.append(tokens)
    assert seen == expected and seen[-1] < grid.prefix + grid.frames * grid.tokens


def test_macs_are_what_torch_counts(model: Any, learned: bool) -> None:
    def counted() -> float:
        on_meta = copy.deepcopy(model).to("meta").requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            answer(on_meta, pixels(model, 1).to("meta"))
        return counter.get_total_flops() / 2

    assert sttm.macs(model) == pytest.approx(counted(), rel=1e-6)
    plan = sttm.apply(model, compute=0.62, learned=learned)
    assert sttm.macs(model) == plan.macs_after == pytest.approx(counted(), rel=1e-6)


def test_gradients_reach_every_parameter(model: Any, learned: bool) -> None:
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    model.train()
    out = answer(model, pixels(model))
    nn.functional.cross_entropy(out, torch.arange(len(out)) % 5).backward()
    # V-JEPA 2's predictor has no part in classification, a token for masks none without one, merged or not.
    unused = ("predictor", "mask_token")
    dead = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # A bias on keys shifts all scores alike, so its gradient is a true zero that may round to none.
    dead = {name for name in dead if not name.endswith(("key.bias", "k_proj.bias"))}
    assert [name for name in dead if not any(part in name for part in unused)] == []


def test_batch_of_two_is_two_of_one(model: Any, learned: bool) -> None:
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    both = logits(model, pixels(model))
    each = torch.cat([logits(model, clip) for clip in pixels(model).chunk(2)])
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-5)


@usual
def test_two_merged_models_do_not_disturb_each_other(model: Any, learned: bool) -> None:
    other = copy.deepcopy(model)
    sttm.apply(model, compute=0.6, learned=learned)
    sttm.apply(other, compute=0.5, learned=not learned)
    stir(model)
    stir(other)
    alone, other_alone = logits(model, pixels(model)), logits(other, pixels(other, seed=5))
    # One runs in the middle of the other's forward.
    blocks = backbone_of(model).blocks(model)

    def interrupt(*_: object) -> None:
        logits(other, pixels(model, seed=5))

    handle = blocks[-1].register_forward_pre_hook(interrupt)
    between = logits(model, pixels(model))
    handle.remove()
    assert torch.equal(between, alone)
    assert torch.equal(logits(other, pixels(model, seed=5)), other_alone)


def test_saved_and_loaded_is_exact(model: Any, learned: bool, tmp_path: Path) -> None:
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    sttm.save(model, tmp_path / "merged")
    loaded = sttm.load(tmp_path / "merged")
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))
    assert {p.suffix for p in (tmp_path / "merged").iterdir()} <= {".json", ".safetensors", ".md"}
    sttm.remove(loaded)
    sttm.remove(model)
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))


@usual
def test_a_saved_model_classifies_video_files(model: Any, learned: bool, tmp_path: Path) -> None:
    """From the folder alone: its own labels, frames and pixels, mergers included."""
    if backbone_of(model).pictures:
        pytest.skip("takes pictures, not video files")
    encode(render("scene", 3, 1, frames=12, size=64)[0], tmp_path / "clip.mp4")
    sttm.apply(model, compute=0.6, learned=learned)
    model.config.id2label = {number: f"action {number}" for number in range(5)}
    folder = sttm.save(model, tmp_path / "model")
    preprocess = Preprocess.from_folder(folder)
    (record,) = predict_files(
        find_videos([str(tmp_path / "clip.mp4")]), sttm.load(folder), preprocess, top_k=5, compute=0.6
    )
    assert record["frames_decoded"] == 8
    (clip,) = read(tmp_path / "clip.mp4", preprocess.sampling)
    # One row a clip; of a space-only TimeSformer one a frame, which the clip's scores are the mean of.
    expected = logits(model, preprocess(clip.frames_TCHW)).softmax(-1).mean(0)
    scores = {guess["label"]: guess["score"] for guess in record["predictions"]}
    assert scores == pytest.approx({f"action {k}": float(expected[k]) for k in range(5)}, rel=1e-4)


def test_failed_apply_leaves_the_model_as_it_was(model: Any, learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, state = logits(model, pixels(model)), snapshot(model)
    wrong: Any
    for wrong in (0, -1, 1.5, float("nan"), "fast", True, None, 0.001):
        with pytest.raises(sttm.SttmError):
            sttm.apply(model, compute=wrong, learned=learned)
    with pytest.raises(sttm.SttmError, match="choose one of"):
        sttm.apply(model, method="nonsense", learned=learned)
    shape: Any
    for shape in ((8, 3, 31, 32), (8, 3, 32), "a clip", 7, (8, 3, 32.0, 32)):
        with pytest.raises(sttm.SttmError, match=r"clip_shape|takes clips of"):
            sttm.apply(model, clip_shape=shape, learned=learned)
    # And one that breaks half way through the edits.
    from sttm.patching.edits import Edits

    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(Edits, "add_module", fail)
    with pytest.raises(RuntimeError, match="no more"):
        sttm.apply(model, compute=0.6, learned=learned)
    assert snapshot(model) == state
    assert torch.equal(logits(model, pixels(model)), before)


def test_twice_is_an_error(model: Any) -> None:
    sttm.apply(model, compute=0.7)
    with pytest.raises(sttm.SttmError, match=r"sttm\.remove"):
        sttm.apply(model, compute=0.7)
    sttm.remove(model)
    with pytest.raises(sttm.SttmError, match=r"sttm\.apply"):
        sttm.remove(model)
    sttm.apply(model, compute=0.7)


def test_trace_records_every_merger(model: Any, learned: bool) -> None:
    plan = sttm.apply(model, compute=0.5, learned=learned)
    with sttm.trace(model) as maps:
        logits(model, pixels(model))
    logits(model, pixels(model))
    assert len(maps) == len(plan.mergers) > 0
    sequences = plain_grid(model).sequences
    for found, merger in zip(maps, plan.mergers, strict=True):
        assert found.grid == ((merger.frames_before, merger.tokens_before), (merger.frames, merger.tokens))
        assert found.assignment.shape == (2 * sequences, merger.frames_before * merger.tokens_before)
        grid = plain_grid(model)
        torch.testing.assert_close(
            found.size.sum(-1), torch.full((2 * sequences,), float(grid.frames * grid.tokens)), rtol=1e-4, atol=1e-3
        )


def compiled_logits(model: Any, backend: str) -> torch.Tensor:
    torch._dynamo.reset()
    return logits(torch.compile(model, fullgraph=True, backend=backend), pixels(model))


@pytest.mark.extended
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("family", ["videomae", "vjepa2"])
def test_compiles_to_the_same_numbers(family: str, learned: bool) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    eager = logits(model, pixels(model))
    torch.testing.assert_close(compiled_logits(model, "inductor"), eager, rtol=1e-4, atol=1e-5)


def test_unknown_model_names_the_families_and_the_way_out() -> None:
    with pytest.raises(sttm.SttmError, match=r"knows a Linear.*sttm models.*docs/families\.md"):
        sttm.apply(nn.Linear(2, 2))
    pretraining = type("VideoMAEForVideoClassifications", (nn.Module,), {})()
    with pytest.raises(sttm.SttmError, match=r"did you mean VideoMAEForVideoClassification\?"):
        sttm.apply(pretraining)


def test_a_model_that_holds_one_of_a_family_names_it() -> None:
    holder = nn.Module()
    holder.tower = nn.Sequential(lively("siglip"))
    with pytest.raises(sttm.SttmError, match=r"SiglipVisionModel; give that part: model\.tower\.0") as caught:
        sttm.apply(holder)
    assert "\n" not in str(caught.value)


def test_clip_of_another_length_says_what_to_do() -> None:
    model = vjepa2().eval()
    sttm.apply(model, compute=0.7)
    with pytest.raises(sttm.SttmError, match="clip_shape"):
        model(torch.randn(1, 4, 3, 32, 32))
    sttm.remove(model)
    sttm.apply(model, compute=0.7, clip_shape=(16, 3, 32, 32))
    assert model(torch.randn(1, 16, 3, 32, 32)).logits.shape == (1, 5)
