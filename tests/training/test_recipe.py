"""Losses, drop path, averages and frozen weights against plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import sttm
from sttm.backbones import backbone_of
from sttm.config import Settings
from sttm.config.sections import DistillationSettings
from sttm.merging.motion import Motion
from sttm.training import recipe
from tests.helpers import videomae


def test_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    targets = torch.eye(5)[labels]
    torch.testing.assert_close(
        recipe.classification_loss(logits, targets, torch.ones(6), 0), cross_entropy(logits, labels)
    )
    smooth = cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(recipe.classification_loss(logits, targets, torch.ones(6), 0.1), smooth)


def test_an_unreadable_clip_has_no_gradient() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    targets, weight = torch.eye(5)[torch.tensor([1, 2, 3, 4])], torch.tensor([1.0, 0, 1, 1])
    teacher = torch.randn(4, 5)
    loss = recipe.classification_loss(logits, targets, weight, 0.1)
    recipe.add_distillation_loss(loss, logits, teacher, weight, DistillationSettings(weight=0.5)).backward()
    assert logits.grad is not None
    assert logits.grad[1].eq(0).all() and logits.grad[[0, 2, 3]].ne(0).all()


def test_the_distillation_loss_is_weighted() -> None:
    logits, teacher, weight = torch.randn(3, 5), torch.randn(3, 5), torch.ones(3)
    loss = torch.tensor(2.0)
    divergence = kl_div(log_softmax(logits / 2, -1), log_softmax(teacher / 2, -1).exp(), reduction="batchmean") * 4
    both = recipe.add_distillation_loss(loss, logits, teacher, weight, DistillationSettings(weight=0.3, temperature=2))
    torch.testing.assert_close(both, 0.7 * loss + 0.3 * divergence)
    same = recipe.add_distillation_loss(loss, logits, logits, weight, DistillationSettings(weight=0.3))
    torch.testing.assert_close(same, 0.7 * loss)


@pytest.mark.parametrize(
    ("start", "merging", "share"),
    [
        ({"start": "a"}, {}, 0.5),
        ({"start": "a"}, {"motion_start": 0}, 0),
        ({"start": "a"}, {"motion_start": 0.3}, 0.3),
        ({"start": "a"}, {"warmup_steps": 5}, 0),
        ({"family": "videomae"}, {}, 0),
        ({"family": "videomae"}, {"motion_start": 0.3}, 0.3),
    ],
)
def test_only_the_new_motion_feature_of_a_checkpoint_waits_by_itself(
    start: dict[str, str], merging: dict[str, float], share: float
) -> None:
    values = {"data": {}, "model": start, "merging": {"compute": 0.5} | merging, "optimizer": {"steps": 10}}
    settings = Settings.model_validate(values | {"run": {"output": "run"}})
    model = videomae()
    sttm.apply(model, compute=0.5, learned=True)
    assert recipe.motion_start(settings, model) == share
    maps = [module.map for module in model.modules() if isinstance(module, Motion)]
    assert maps
    torch.nn.init.ones_(maps[-1].bias)  # it has been trained
    assert recipe.motion_start(settings, model) == merging.get("motion_start", 0)


def test_drop_path_skips_whole_blocks_for_some_clips_and_keeps_the_mean() -> None:
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


def test_drop_path_grows_with_depth_from_zero_at_the_first_block(merged: Any) -> None:
    recipe.add_drop_path(merged, 0.3)
    probabilities = [
        [hook.probability for hook in block._forward_hooks.values() if isinstance(hook, recipe.DropPath)]
        for block in backbone_of(merged).blocks(merged)
    ]
    assert probabilities == [[], [pytest.approx(0.1)], [pytest.approx(0.2)], [pytest.approx(0.3)]]
    clips = torch.randn(16, 4, 3, 32, 32)  # enough that some skip a block
    merged.train()
    assert not torch.equal(merged(clips).logits, merged(clips).logits)
    merged(clips).logits.sum().backward()
    merged.eval()
    assert torch.equal(merged(clips).logits, merged(clips).logits)


@pytest.mark.parametrize("method", ["sttm", "tome"])
@pytest.mark.parametrize("first", ["merge", "drop"])
def test_drop_path_around_a_merger(method: str, first: str) -> None:
    """Before a block or inside it, merged before or after drop path was added: a skipped block merges all the same."""
    model = videomae()
    if first == "drop":
        recipe.add_drop_path(model, 0.9)
    sttm.apply(model, 0.6, method)
    if first == "merge":
        recipe.add_drop_path(model, 0.9)
    model.train()
    torch.manual_seed(0)
    assert model(torch.randn(4, 8, 3, 32, 32)).logits.isfinite().all()


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
    with pytest.raises(RuntimeError), average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
        raise RuntimeError("inside")
    assert torch.equal(model.weight.detach(), raw)
    torch.testing.assert_close(average.averages["weight"], expected)


def test_parameters_without_effect_on_the_logits_are_frozen(merged: Any) -> None:
    recipe.freeze_unused(merged, backbone_of(merged).clip_shape(merged))
    for name, parameter in merged.named_parameters():
        assert parameter.requires_grad == ("predictor" not in name and "mask_token" not in name), name
        assert parameter.grad is None


def test_each_step_and_process_has_a_seed_of_its_own() -> None:
    seeds = {recipe.step_seed(seed, step, process) for seed in range(3) for step in range(50) for process in range(3)}
    assert len(seeds) == 450
    assert recipe.step_seed(1, 2, 3) == recipe.step_seed(1, 2, 3)
