"""ViT: what is its own beside the contract of every family; sizes, poolers, and pictures of another size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTModel

import sttm
from tests.helpers import lively, logits, pixels, vit


def test_merging_equal_patches_changes_nothing() -> None:
    """Of a picture made of three looks, without positions, every slot holds copies of one: sizes make up for them."""
    torch.manual_seed(0)
    model = vit().eval()
    nn.init.zeros_(model.vit.embeddings.position_embeddings)
    looks = torch.randn(3, 3, 4, 4)
    patches = looks[torch.randint(3, (8, 8))]
    # [H W C 4 4] -> [1 C H*4 W*4]
    picture = patches.permute(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)
    before = logits(model, picture)
    plan = sttm.apply(model, compute=0.75)
    assert min(merger.tokens for merger in plan.mergers) >= len(looks)
    torch.testing.assert_close(logits(model, picture), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("compute", [1, 0.6])
def test_macs_of_the_base_by_itself(pooler: bool, compute: float) -> None:
    config = vit(image_size=(32, 24), patch_size=(4, 8), pooler_output_size=20).config
    model: Any = ViTModel(config, add_pooling_layer=pooler).eval()
    sttm.apply(model, compute)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.to("meta")(pixels(model, 1).to("meta"))
    assert sttm.macs(model) == counter.get_total_flops() / 2


def test_interpolated_positions_are_refused() -> None:
    model = lively("vit")
    larger = torch.randn(1, 3, 48, 48)
    assert model(larger, interpolate_pos_encoding=True).logits.shape == (1, 5)
    sttm.apply(model, compute=0.6)
    with pytest.raises(sttm.SttmError, match=r"this vit model takes clips of \(any frames, 3, 32, 32\)"):
        model(larger, interpolate_pos_encoding=True)


def test_a_picture_has_no_frames_to_leave_out() -> None:
    with pytest.raises(sttm.SttmError, match="one at a time; choose one of sttm"):
        sttm.apply(lively("vit"), 0.5, "frames")
