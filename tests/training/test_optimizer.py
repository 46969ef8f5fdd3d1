"""Parameter groups, learning rates, clipping and Muon against plain arithmetic and torch's own optimizers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import pytest
import torch

import sttm
from sttm.backbones import backbone_of
from sttm.config.sections import OptimizerSettings
from sttm.training import optimizer as engine
from tests.helpers import tiny_model

Name = Literal["adamw", "muon"]
NAMES: tuple[Name, ...] = ("adamw", "muon")


def groups_by_name(model: Any, settings: OptimizerSettings) -> dict[str, dict[str, Any]]:
    """Return the group of each parameter."""
    groups = engine.parameter_groups(model, settings)
    found = {id(p): group for group in groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


def blocks_path(model: Any) -> str:
    blocks = backbone_of(model).blocks(model)
    return next(name for name, module in model.named_modules() if module is blocks)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group(name: Name, merged: Any) -> None:
    optimizer = engine.make_optimizer(merged, OptimizerSettings(steps=9, layer_decay=0.5, name=name))
    numbers = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(numbers) == sorted(id(p) for p in merged.parameters())


def test_layers_decay_towards_the_embeddings(merged: Any) -> None:
    settings = OptimizerSettings(steps=9, layer_decay=0.5, weight_decay=0.1, merger_lr=3e-4, lr=1e-4)
    found, path = groups_by_name(merged, settings), blocks_path(merged)
    for name, group in found.items():
        scale, decay = group["scale"], group["weight_decay"]
        if ".merger." in name:
            assert scale == pytest.approx(3)
        elif name.startswith(f"{path}."):
            assert scale == 0.5 ** (4 - int(name.removeprefix(path + ".").split(".")[0])), name
        elif ".embeddings." in name:
            assert scale == 0.5**5, name
        elif name.startswith("classifier"):
            assert scale == 1, name
        undecayed = merged.get_parameter(name).ndim == 1 or any(
            part in name for part in ("position_emb", "cls", "time_emb")
        )
        assert decay == (0 if undecayed else 0.1), name
        assert not group["muon"]


def test_muon_has_the_matrices_of_the_blocks(merged: Any) -> None:
    shared: dict[str, Any] = dict(steps=9, layer_decay=0.5, lr=1e-3, merger_lr=3e-3, weight_decay=0.1)
    adamw = groups_by_name(merged, OptimizerSettings(**shared))
    muon = groups_by_name(merged, OptimizerSettings(**shared, name="muon", muon_lr=0.02, muon_weight_decay=0.03))
    path, seen = blocks_path(merged), set()
    for name, group in muon.items():
        matrix = merged.get_parameter(name).ndim == 2 and name.startswith(f"{path}.") and ".merger." not in name
        assert group["muon"] == matrix, name
        assert group["scale"] == pytest.approx(adamw[name]["scale"] * (20 if matrix else 1)), name
        assert group["weight_decay"] == (0.03 if matrix else adamw[name]["weight_decay"]), name
        seen.add((matrix, ".merger." in name))
    assert seen == {(True, False), (False, True), (False, False)}
    same = groups_by_name(merged, OptimizerSettings(**shared, name="muon"))
    assert all(same[name]["weight_decay"] == 0.1 for name, group in muon.items() if group["muon"])


def test_learning_rate_warms_up_and_falls_to_the_least() -> None:
    settings = OptimizerSettings(steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    line = [engine.learning_rate(step, 100, settings) for step in range(101)]
    assert line[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert line[10] == 1 and line[55] == pytest.approx(0.55) and line[100] == pytest.approx(0.1)
    assert all(after < before for before, after in pairwise(line[10:]))
    assert engine.learning_rate(0, 100, OptimizerSettings(steps=100, lr=1.0, warmup_steps=0)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_only_mergers_are_trained_in_their_warmup(name: Name, merged: Any) -> None:
    optimizer = engine.make_optimizer(merged, OptimizerSettings(steps=9, lr=1.0, name=name))
    engine.set_learning_rates(optimizer, 0.01, only_mergers=True)
    before = {name: value.clone() for name, value in merged.named_parameters()}
    merged(torch.randn(2, 4, 3, 32, 32)).logits.square().sum().backward()
    optimizer.step()
    moved = {name for name, value in merged.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(".merger." in name for name in moved)
    engine.set_learning_rates(optimizer, 0.01, only_mergers=False)
    optimizer.step()
    assert not torch.equal(merged.classifier.weight, before["classifier.weight"])
    matrix = next(name for name in before if name.startswith(blocks_path(merged)) and before[name].ndim == 2)
    assert not torch.equal(merged.get_parameter(matrix), before[matrix])


@pytest.mark.parametrize("name", NAMES)
def test_motion_features_wait_for_their_turn(name: Name) -> None:
    model = tiny_model("videomae")
    sttm.apply(model, 0.5, method="patchmerger", learned=True, motion=True)
    optimizer = engine.make_optimizer(model, OptimizerSettings(steps=9, lr=1.0, name=name))
    before = {name: value.clone() for name, value in model.named_parameters()}
    for motion in (False, True):
        engine.set_learning_rates(optimizer, 0.01, only_mergers=False, motion=motion)
        model(torch.randn(2, 4, 3, 32, 32)).logits.square().sum().backward()
        optimizer.step()
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert any(".merger.motion.map." in name for name in moved) == motion
        assert any(".merger." in name and ".motion." not in name for name in moved)
        assert any(".merger." not in name for name in moved)


def test_muon_is_the_pair_of_optimizers_that_the_studies_use() -> None:
    """Muon at 0.02 with weight decay 0.05 beside AdamW without, clipped at 1, as one config says it."""
    settings = OptimizerSettings(
        name="muon", lr=2e-3, muon_lr=0.02, min_lr=0, steps=10, warmup_steps=1, betas=(0.9, 0.98), weight_decay=0,
        muon_weight_decay=0.05, clip_norm=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    one, other = (tiny_model("videomae") for _ in range(2))
    for model in (one, other):
        sttm.apply(model, 0.7, learned=True)
    other.load_state_dict(one.state_dict())
    optimizer = engine.make_optimizer(one, settings)
    inside = {
        id(p) for name, p in other.named_parameters() if p.ndim == 2 and ".layer." in name and ".merger." not in name
    }
    hidden, rest = ([p for p in other.parameters() if (id(p) in inside) is muon] for muon in (True, False))
    pair: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    )
    for step in range(4):
        clips = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        for model in (one, other):
            model.zero_grad()
            model(clips).logits.square().sum().backward()
        share = engine.learning_rate(step, 10, settings) / settings.lr
        engine.set_learning_rates(optimizer, share * settings.lr, only_mergers=False)
        engine.clip_gradients(one.parameters(), settings.clip_norm)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        for part, peak in zip(pair, (0.02, 2e-3), strict=True):
            part.param_groups[0]["lr"] = peak * share
            part.step()
    for name, value in one.named_parameters():
        torch.testing.assert_close(value, other.get_parameter(name), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_dropped_after_a_step(name: Name) -> None:
    model = tiny_model("videomae")
    optimizer = engine.make_optimizer(model, OptimizerSettings(steps=9, name=name))
    model(torch.randn(1, 4, 3, 32, 32)).logits.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_are_clipped_to_the_norm() -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0, 0.0]])
    assert engine.clip_gradients(model.parameters(), None) == 5
    torch.testing.assert_close(model.weight.grad, torch.tensor([[3.0, 4.0, 0.0]]))
    assert engine.clip_gradients(model.parameters(), 1.0) == 5
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8, 0.0]]))
