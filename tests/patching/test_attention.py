"""Sizes in attention: a key of size n counts as n equal keys, whichever function attends and whenever it is chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

import sttm
from sttm.backbones import backbone_of
from sttm.backbones.base import Slots
from sttm.patching.attention import SIZED, SizedConfig, WeighProbabilities, folded, sized_attention
from sttm.patching.state import local
from tests.helpers import FAMILIES, lively, logits, pixels

SIZE = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]])  # one clip, F = 2 frames of M = 2 slots
BY_INTERFACE = [name for name in FAMILIES if not name.startswith("timesformer")]


def slots(prefix: int, time_minor: bool = False) -> Slots:
    size = SIZE.transpose(1, 2) if time_minor else SIZE
    log_size = nn.functional.pad(size.flatten(1).log(), (prefix, 0))
    return Slots(SIZE, torch.zeros(1, 2, 2, 3), log_size, prefix)


def repeated(x_BAKD: Tensor, size_K: Tensor) -> Tensor:
    return x_BAKD.repeat_interleave(size_K.long(), dim=2)


def a_kernel_without_masks(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as flash attention does: without any bias."""
    assert attention_mask is None
    out = scaled_dot_product_attention(query, key, value, scale=options["scaling"])
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("kernel_without_masks", a_kernel_without_masks)
CHOICES = ["sdpa", "eager", "kernel_without_masks"]


def attending(implementation: str) -> nn.Module:
    module = nn.Module()
    module.config = SizedConfig(SimpleNamespace(_attn_implementation=implementation))  # type: ignore[assignment]
    return module.eval()


@pytest.mark.parametrize("implementation", CHOICES)
def test_a_key_counts_as_often_as_its_size(implementation: str) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    size_K = torch.tensor([1, 1, 3, 2, 5])  # the class token, then frame by frame
    expected = scaled_dot_product_attention(query, repeated(key, size_K), repeated(value, size_K), scale=0.3)
    local.slots = slots(prefix=1)
    out, _ = sized_attention(attending(implementation), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(out.transpose(1, 2), expected)
    assert local.slots is None  # weighed once


@pytest.mark.parametrize("width", [8, 12, 15, 16, 30])
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
def test_folded_products_hold_the_bias(width: int, dtype: torch.dtype, far: float) -> None:
    """Also in half precision, where one channel would be wrong by 0.4 %: log sizes reach 7."""
    bias = torch.tensor([0.0, 1, 3, 100, 1568]).clamp(min=1).log()[None, None, None]
    query, key = torch.zeros(1, 2, 4, width, dtype=dtype), torch.zeros(1, 2, 5, width, dtype=dtype)
    wide_query, wide_key = folded(query, key, bias, scaling=width**-0.5)
    assert wide_query.shape[-1] % 8 == 0 and wide_query.dtype == wide_key.dtype == dtype
    scores = wide_query.float() @ wide_key.float().transpose(-1, -2) * width**-0.5
    torch.testing.assert_close(scores, bias.expand(1, 2, 4, 5), rtol=far / 7, atol=far)


@pytest.mark.parametrize("gradients", [True, False])
def test_probabilities_weighed_after_the_softmax_are_those_of_log_sizes_before_it(gradients: bool) -> None:
    torch.manual_seed(0)
    keys = {
        "clip": torch.tensor([[1.0, 1, 2, 3, 5]]),  # place by place behind the class token
        "frame": torch.tensor([[1.0, 1, 3], [1, 2, 5]]),  # a row a frame, its class token first
        "place": torch.tensor([[1.0, 2], [3, 5]]),  # a row a place
    }
    for over, size_BK in keys.items():
        scores = torch.randn(len(size_BK), 2, 4, size_BK.shape[1])
        local.slots = slots(prefix=1, time_minor=True)
        given = scores.softmax(-1)
        with torch.set_grad_enabled(gradients):
            (weighed,) = WeighProbabilities(over)(nn.Module(), (given,))
        torch.testing.assert_close(weighed, (scores + size_BK.log()[:, None, None]).softmax(-1))
        assert torch.equal(given, scores.softmax(-1))
    local.slots = None


def implementations(family: str) -> list[str]:
    return [*CHOICES, "flex_attention"] if lively(family)._supports_flex_attn else CHOICES


@pytest.mark.parametrize("family", BY_INTERFACE)
@pytest.mark.filterwarnings("ignore")  # flex attention compiles on its first call, and torch's compiler warns
def test_sizes_survive_every_implementation_whenever_it_is_chosen(family: str) -> None:
    model = lively(family)
    model.set_attn_implementation("sdpa")
    sttm.apply(model, compute=0.5)
    expected = logits(model, pixels(model))
    for chosen in [*implementations(family), "sdpa"]:
        model.set_attn_implementation(chosen)
        assert model.config._attn_implementation == chosen
        torch.testing.assert_close(logits(model, pixels(model)), expected, rtol=1e-4, atol=1e-5, msg=chosen)
        before = lively(family)
        before.set_attn_implementation(chosen)
        sttm.apply(before, compute=0.5)
        torch.testing.assert_close(logits(before, pixels(model)), expected, rtol=1e-4, atol=1e-5, msg=chosen)


@pytest.mark.parametrize("family", BY_INTERFACE)
def test_remove_keeps_the_choice(family: str) -> None:
    model, plain = lively(family), lively(family)
    sttm.apply(model, compute=0.5)
    model.set_attn_implementation("eager")
    plain.set_attn_implementation("eager")
    sttm.remove(model)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, pixels(model)), logits(plain, pixels(model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_models_of_one_config(family: str) -> None:
    model = lively(family)
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    plain = logits(model, pixels(model))
    sttm.apply(model, compute=0.5)
    merged = logits(model, pixels(model))
    assert torch.equal(logits(other, pixels(model)), plain)
    sttm.apply(other, compute=0.5)
    assert torch.equal(logits(other, pixels(model)), merged)
    sttm.remove(model)
    assert torch.equal(logits(model, pixels(model)), plain) and torch.equal(logits(other, pixels(model)), merged)


def test_attention_probabilities_can_be_looked_at() -> None:
    model = lively("videomae")
    plan = sttm.apply(model, compute=0.5)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixels(model), output_attentions=True).attentions
    assert [a.shape[-1] for a in attentions][-1] == plan.mergers[-1].frames * plan.mergers[-1].tokens
    torch.testing.assert_close(attentions[-1].sum(-1), torch.ones_like(attentions[-1].sum(-1)))


def test_only_modules_see_the_other_name() -> None:
    model = lively("videomae")
    block = backbone_of(model).blocks(model)[-1]
    sttm.apply(model, compute=0.5)
    config = block.attention.attention.config
    assert config is not model.config and config.hidden_size == model.config.hidden_size
    local.slots = slots(0)
    assert config._attn_implementation == SIZED and model.config._attn_implementation == "sdpa"
    local.slots = None
    assert config._attn_implementation == "sdpa"


def test_a_mask_of_the_plain_tokens_is_refused() -> None:
    model = lively("vivit")
    mask = torch.ones(2, 65, dtype=torch.long)
    mask[:, -1] = 0
    model(pixels(model), attention_mask=mask)
    sttm.apply(model, compute=0.5)
    with pytest.raises(sttm.SttmError, match="no attention mask"):
        model(pixels(model), attention_mask=mask)
