"""timm's VisionTransformer: the proofs of the contract, where timm and a torchvision that fits can be imported."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import sttm
from sttm.patching.api import install
from sttm.patching.plan import MergerPlan, Plan

try:
    import timm
except Exception as error:  # a torchvision of another build raises anything
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)

SIZES: dict[str, Any] = dict(img_size=24, patch_size=4, embed_dim=48, depth=4, num_heads=4, num_classes=5)
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": dict(global_pool="avg"),
    "registers, scaled, normalised": dict(reg_tokens=3, init_values=1.0, qk_norm=True),
    "attention at the end": dict(global_pool="map", class_token=False),
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(**SIZES | VARIANTS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False)


def test_the_proofs(model: Any) -> None:
    pictures = torch.randn(2, 3, 24, 24)
    plain, keys = model(pictures), set(model.state_dict())
    sttm.apply(model, compute=1)
    assert torch.equal(model(pictures), plain)
    sttm.remove(model)
    mergers = MergerPlan(1, 1, 36, 1, 36), MergerPlan(3, 1, 36, 1, 36)
    install(model, Plan(1.0, 1, 1, mergers, "sttm", False, (1, 3, 24, 24), "novelty", "timm-vit", restore=True))
    torch.testing.assert_close(model(pictures), plain, rtol=1e-4, atol=1e-5)
    sttm.remove(model)
    assert torch.equal(model(pictures), plain) and set(model.state_dict()) == keys


@pytest.mark.parametrize("clip_shape", [(1, 3, 24, 24), (4, 3, 24, 24)])
def test_plans_are_met_and_counted_as_torch_counts(model: Any, clip_shape: tuple[int, int, int, int]) -> None:
    for compute in (1, 0.6):
        plan = sttm.apply(model, compute, clip_shape=clip_shape)
        on_meta = copy.deepcopy(model).to("meta")
        with FlopCounterMode(display=False) as counter:
            on_meta(torch.empty(clip_shape, device="meta"))
        assert counter.get_total_flops() / 2 == plan.macs_after and compute - 0.02 < plan.compute <= compute
        sttm.remove(model)


def test_equal_patches_merge_without_loss(model: Any) -> None:
    torch.nn.init.zeros_(model.pos_embed)
    looks = torch.randn(3, 3, 4, 4)
    patches = looks[torch.randint(3, (2, 6, 6))]
    # [B H W C 4 4] -> [B C H*4 W*4]
    pictures = patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 24, 24)
    plain = model(pictures)
    sttm.apply(model, 0.7)
    torch.testing.assert_close(model(pictures), plain, rtol=1e-4, atol=1e-4)


def test_what_is_refused(model: Any, tmp_path: Any) -> None:
    sttm.apply(model, 0.6)
    with pytest.raises(sttm.SttmError, match="takes no attention mask"):
        model(torch.randn(1, 3, 24, 24), attn_mask=torch.zeros(37, 37))
    with pytest.raises(sttm.SttmError, match=r"no model of transformers.*state_dict"):
        sttm.save(model, tmp_path)
    with pytest.raises(sttm.SttmError, match="ran outside of the model's forward"):
        model.forward_features(torch.randn(1, 3, 24, 24))
    other = timm.models.vision_transformer.VisionTransformer(
        **SIZES, block_fn=timm.models.vision_transformer.ResPostBlock
    )
    with pytest.raises(sttm.SttmError, match="no VisionTransformer of timm with its plain blocks"):
        sttm.apply(other)


def test_in_transformers_wrapper() -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
    from transformers.utils.import_utils import is_timm_available

    if not is_timm_available():
        pytest.skip("transformers finds no timm")
    arguments = {key: value for key, value in SIZES.items() if key != "num_classes"}
    labels: dict[str, Any] = dict(num_labels=5)  # which any config takes
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=arguments, **labels)
    model = TimmWrapperForImageClassification(config).eval().requires_grad_(False)
    pictures = torch.randn(2, 3, 24, 24)
    plain = model(pictures).logits
    plan = sttm.apply(model, 0.6)
    assert plan.family == "timm-vit" and not torch.equal(model(pictures).logits, plain)
    sttm.remove(model)
    assert torch.equal(model(pictures).logits, plain)
