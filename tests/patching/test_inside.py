"""Mergers inside a block, between attention and MLP: the block of the papers, in every mode of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sttm
from sttm.backbones import backbone_of
from sttm.backbones.base import Layer
from sttm.backbones.videomae import VideoMAE
from sttm.merging import METHODS, method_named, spec_of
from sttm.merging.tokens import MergeMap, Tokens
from sttm.patching import schedule
from sttm.patching.api import install, plan_of
from sttm.patching.hooks import MERGER
from sttm.patching.plan import MergerPlan, Plan
from sttm.patching.state import local
from tests.helpers import FAMILIES, answer, lively, logits, pixels, stir, videomae

METHODS_INSIDE = [name for name in METHODS if spec_of(name).inside == "all"]
OPEN = [name for name in FAMILIES if not name.startswith("timesformer")]
CASES = [(family, method) for family in OPEN for method in METHODS_INSIDE]
every_case = pytest.mark.parametrize(("family", "method"), CASES)
#: Each family and each method at least once.
SOME = [("videomae", "evit"), ("vivit", "tome"), ("vivit", "evit"), ("vjepa2", "pitome"), ("vit", "tome")]
some_cases = pytest.mark.parametrize(("family", "method"), SOME)


def merged(family: str, method: str) -> Any:
    model = lively(family)
    sttm.apply(model, 0.5, method)
    return model


def mlp_of(block: Any, x: Tensor) -> Tensor:
    """Return what the MLP adds to x, as each family writes it."""
    if hasattr(block, "output"):
        y: Tensor = block.output.dense(block.intermediate(block.layernorm_after(x)))
    elif hasattr(block, "norm2"):
        y = block.mlp(block.norm2(x))
    else:
        y = block.mlp(block.layernorm_after(x))
    return y


def keys_of(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys of normalised tokens, [B A N D], as each family makes them."""
    linear = [getattr(attention, name, None) or getattr(attention, f"{name[0]}_proj") for name in ("query", "key")]
    heads = attention.num_attention_heads
    query, key = (layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in linear)
    if hasattr(attention, "get_position_ids"):
        ids = attention.get_position_ids(x)
        query, key = (attention.apply_rotary_embeddings(each, ids) for each in (query, key))
    return query, key


def by_hand(who: MergeMap, x_BNC: Tensor, prefix: int) -> Tensor:
    """Average by the map in loops, the prefix tokens beside it."""
    out = [[*clip[:prefix]] for clip in x_BNC]
    assert who.weight is not None
    for clip, rows in enumerate(out):
        for slot in range(who.size.shape[1]):
            members = (who.assignment[clip] == slot).nonzero()[:, 0]
            rows.append(sum(who.weight[clip, i] * x_BNC[clip, prefix + i] for i in members))
    return torch.stack([torch.stack(rows) for rows in out])


@every_case
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_block_is_that_of_the_paper(family: str, method: str, attention: str) -> None:
    """Attention over all tokens, what it computes decides who merges, the MLP over the slots, two residuals."""
    model = lively(family)
    model.set_attn_implementation(attention)
    backbone, clips = backbone_of(model), pixels(model)
    grid, block = backbone.grid(model, backbone.clip_shape(model)), backbone.blocks(model)[1]
    layer = backbone.layer(block)
    assert layer.norm is not None
    seen: list[Tensor] = []  # what the block gets, and what the norm before its MLP gets
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in (block, layer.norm)]
    logits(model, clips)
    for handle in handles:
        handle.remove()
    given_BNC, u_BNC = seen
    first_norm = block.norm1 if hasattr(block, "norm1") else block.layernorm_before
    with torch.no_grad():
        query, key = keys_of(layer.attention[0].module, first_norm(given_BNC))
        probabilities = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
        cue = key.mean(1) if spec_of(method).reads == "keys" else None
        if cue is None:
            row = probabilities[:, 0] if grid.prefix else probabilities.mean(1)
            cue = row[..., None]
        # The reducer by itself, on what the plain block computes.
        x_BTSC, _ = backbone.split(u_BNC, grid.frames, grid.tokens, grid.prefix)
        given = Tokens.of_grid(x_BTSC, grid.height, grid.width)
        given.cue_BTSD, _ = backbone.split(cue, grid.frames, grid.tokens, grid.prefix)
        width = int(backbone.head_width(model))
        sizes: dict[str, Any] = dict(frames_in=grid.frames, tokens_in=grid.tokens, cue_dim=width, depth=1 / 4)
        _, expected = method_named(method)(backbone.width(model), 1, 40, **sizes)(given)
        slots = by_hand(expected, u_BNC, grid.prefix)
        result = slots + mlp_of(block, slots)

    merger = MergerPlan(1, grid.frames, grid.tokens, 1, 40, inside=True)
    install(model, Plan(1.0, 1, 1, (merger,), method, False, backbone.clip_shape(model), None, backbone.family))
    out: list[Any] = []
    block.register_forward_hook(lambda *args: out.append(args[2]))
    with sttm.trace(model) as maps:
        logits(model, clips)
    assert torch.equal(maps[0].assignment, expected.assignment)
    torch.testing.assert_close(maps[0].weight, expected.weight, rtol=1e-4, atol=1e-6)
    found = out[0][0] if isinstance(out[0], tuple) else out[0]
    torch.testing.assert_close(found, result, rtol=1e-4, atol=1e-5)


@some_cases
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # use_reentrant has a newer name in some versions
def test_a_recomputation_follows_the_map(family: str, method: str, reentrant: bool) -> None:
    """Each merger runs once a forward: a near tie that falls otherwise the second time cannot mix two maps."""
    model, calls = merged(family, method).train(), []
    for block in backbone_of(model).blocks(model):
        if (module := getattr(block, MERGER, None)) is not None:
            module.register_forward_hook(lambda *_: calls.append(0))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    (answer(model, pixels(model)).square().sum() + answer(model, pixels(model, seed=3)).square().sum()).backward()
    assert len(calls) == 2 * len(plan_of(model).mergers) and not local.steps


@some_cases
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_motion_is_added_to_the_slots_that_leave_the_block(family: str, method: str, reentrant: bool | None) -> None:
    model = lively(family)
    sttm.apply(model, 0.5, method, motion=True)
    at_start = logits(model, pixels(model))
    twin = lively(family)
    install(twin, replace(plan_of(model), motion=False, learned=False))
    assert torch.equal(at_start, logits(twin, pixels(model)))
    stir(model)
    moved = logits(model, pixels(model))
    assert not torch.allclose(moved, at_start, atol=1e-5)
    model.train()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    out = answer(model, pixels(model))
    torch.testing.assert_close(out, moved, rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    dead = [n for n, p in model.named_parameters() if ".merger." in n and (p.grad is None or not p.grad.any())]
    assert dead == []


@some_cases
def test_another_forward_between_attention_and_mlp(family: str, method: str) -> None:
    model, other = merged(family, method), merged(*SOME[0])
    expected, inner = logits(model, pixels(model)), logits(other, pixels(other, 3))
    backbone = backbone_of(model)
    norm = backbone.layer(backbone.blocks(model)[1]).norm
    assert norm is not None
    found: list[Tensor] = []

    def interrupt(*_: object) -> None:
        assert len(local.steps) == 1
        found.append(logits(other, pixels(other, 3)))

    norm.register_forward_hook(interrupt)
    assert torch.equal(logits(model, pixels(model)), expected)
    assert torch.equal(found[0], inner) and not local.steps


class Closed(VideoMAE):
    """A family of one's own that does not say where its MLP is."""

    def layer(self, block: Any) -> Layer:
        return Layer(block, super().layer(block).attention)


@pytest.mark.parametrize("method", METHODS_INSIDE)
def test_a_family_whose_blocks_do_not_open_up_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sttm.SttmError, match=f"{method} merges inside a block.*timesformer does not show; choose one"):
        sttm.apply(lively("timesformer-space"), 0.5, method)
    with pytest.raises(sttm.SttmError, match="merges inside a block"):
        schedule.make_plan(Closed(), videomae(), 0.5, method)
