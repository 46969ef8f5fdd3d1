"""Rates, losses, drop path and averages against plain arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import sttm
from sttm.backbones import backbone_of
from sttm.config.settings import DistillationSettings, OptimizerSettings
from sttm.training import recipe
from tests.training.test_build import MODELS


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    sttm.apply(model, 0.7, learned=True)
    return model


def rates(model: Any, settings: OptimizerSettings) -> dict[str, tuple[float, float]]:
    """Name -> (factor on the rate, weight decay)."""
    groups = recipe.parameter_groups(model, settings)
    found = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


def test_every_parameter_is_in_one_group(model: Any) -> None:
    groups = recipe.parameter_groups(model, OptimizerSettings(steps=9, layer_decay=0.5))
    numbers = [id(p) for group in groups for p in group["params"]]
    assert sorted(numbers) == sorted(id(p) for p in model.parameters())


def test_layers_decay_towards_the_clip(model: Any) -> None:
    settings = OptimizerSettings(steps=9, layer_decay=0.5, weight_decay=0.1, merger_lr=3e-4, lr=1e-4)
    found, blocks = rates(model, settings), backbone_of(model).blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks)
    for name, (scale, decay) in found.items():
        if ".merger." in name:
            assert scale == pytest.approx(3)
        elif name.startswith(f"{path}."):
            assert scale == 0.5 ** (4 - int(name.removeprefix(path + ".").split(".")[0])), name
        elif ".embeddings." in name:
            assert scale == 0.5**5, name
        elif name.startswith("classifier"):
            assert scale == 1, name
        undecayed = model.get_parameter(name).ndim == 1 or "position_emb" in name or "cls" in name or "time_emb" in name
        assert decay == (0 if undecayed else 0.1), name


def test_rate_warms_up_and_falls_to_the_least() -> None:
    settings = OptimizerSettings(steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    line = [recipe.rate(step, 100, settings) for step in range(101)]
    assert line[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert line[10] == 1 and line[55] == pytest.approx(0.55) and line[100] == pytest.approx(0.1)
    assert all(after < before for before, after in pairwise(line[10:]))
    assert recipe.rate(0, 100, OptimizerSettings(steps=100, lr=1.0, warmup_steps=0)) == 1


def test_only_mergers_learn_in_their_warmup(model: Any) -> None:
    optimizer = torch.optim.AdamW(recipe.parameter_groups(model, OptimizerSettings(steps=9)), lr=1.0)
    recipe.set_rates(optimizer, 0.01, only_mergers=True)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(torch.randn(2, 4, 3, 32, 32)).logits.square().sum().backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(".merger." in name for name in moved)
    recipe.set_rates(optimizer, 0.01, only_mergers=False)
    optimizer.step()
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    targets = torch.eye(5)[labels]
    torch.testing.assert_close(recipe.loss_of(logits, targets, torch.ones(6), 0), cross_entropy(logits, labels))
    smooth = cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(recipe.loss_of(logits, targets, torch.ones(6), 0.1), smooth)


def test_an_unreadable_clip_pulls_at_nothing() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    targets, weight = torch.eye(5)[torch.tensor([1, 2, 3, 4])], torch.tensor([1.0, 0, 1, 1])
    teacher = torch.randn(4, 5)
    loss = recipe.loss_of(logits, targets, weight, 0.1)
    recipe.taught(loss, logits, teacher, weight, DistillationSettings(weight=0.5)).backward()
    assert logits.grad is not None
    assert logits.grad[1].eq(0).all() and logits.grad[[0, 2, 3]].ne(0).all()


def test_the_teacher_counts_for_its_share() -> None:
    logits, teacher, weight = torch.randn(3, 5), torch.randn(3, 5), torch.ones(3)
    loss = torch.tensor(2.0)
    apart = kl_div(log_softmax(logits / 2, -1), log_softmax(teacher / 2, -1).exp(), reduction="batchmean") * 4
    taught = recipe.taught(loss, logits, teacher, weight, DistillationSettings(weight=0.3, temperature=2))
    torch.testing.assert_close(taught, 0.7 * loss + 0.3 * apart)
    same = recipe.taught(loss, logits, logits, weight, DistillationSettings(weight=0.3))
    torch.testing.assert_close(same, 0.7 * loss)


def test_drop_path_skips_whole_blocks_of_some_clips_and_keeps_the_mean(model: Any) -> None:
    block = torch.nn.Linear(3, 3)
    block.register_forward_hook(recipe.DropPath(0.25))
    given = torch.randn(1, 2, 3).expand(4000, 2, 3)
    added = (torch.nn.functional.linear(given, block.weight, block.bias) - given)[0]
    torch.manual_seed(0)
    made = block(given) - given
    skipped = made.flatten(1).eq(0).all(1)
    torch.testing.assert_close(made[~skipped], (added / 0.75).expand(int((~skipped).sum()), 2, 3))
    assert abs(skipped.float().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    torch.testing.assert_close(block.eval()(given)[0], given[0] + added)


def test_drop_path_grows_with_depth_and_spares_the_first_block(model: Any) -> None:
    recipe.drop_paths(model, 0.3)
    chances = [
        [hook.chance for hook in block._forward_hooks.values() if isinstance(hook, recipe.DropPath)]
        for block in backbone_of(model).blocks(model)
    ]
    assert chances == [[], [pytest.approx(0.1)], [pytest.approx(0.2)], [pytest.approx(0.3)]]
    clips = torch.randn(16, 4, 3, 32, 32)  # of so many, some skip a block
    model.train()
    assert not torch.equal(model(clips).logits, model(clips).logits)
    model(clips).logits.sum().backward()
    model.eval()
    assert torch.equal(model(clips).logits, model(clips).logits)


def test_average_is_the_recursion_and_gives_the_weights_back() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = recipe.MovingAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(8):
        model.weight.data += 1
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(step)
    raw = model.weight.detach().clone()
    with pytest.raises(RuntimeError), average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
        raise RuntimeError("on the way")
    assert torch.equal(model.weight.detach(), raw)
    torch.testing.assert_close(average.averages["weight"], expected)


def test_what_no_logit_depends_on_is_frozen(model: Any) -> None:
    recipe.freeze_unused(model, backbone_of(model).clip_shape(model))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("predictor" not in name and "mask_token" not in name), name
        assert parameter.grad is None


def test_gradients_are_cut_to_the_norm() -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0, 0.0]])
    assert recipe.total_norm(model.parameters(), None) == 5
    torch.testing.assert_close(model.weight.grad, torch.tensor([[3.0, 4.0, 0.0]]))
    assert recipe.total_norm(model.parameters(), 1.0) == 5
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8, 0.0]]))


def test_each_step_and_process_has_noise_of_its_own() -> None:
    seeds = {recipe.step_seed(seed, step, process) for seed in range(3) for step in range(50) for process in range(3)}
    assert len(seeds) == 450
    assert recipe.step_seed(1, 2, 3) == recipe.step_seed(1, 2, 3)
