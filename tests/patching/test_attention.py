"""Sizes in attention: a key of size n counts as n equal keys, in every form that the families need."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sttm.backbones.base import Ledger, Page
from sttm.backbones.timesformer import SizedProbabilities
from sttm.merging.tokens import MergeMap
from sttm.patching.attention import SIZES, KeySizes, sized_eager, sized_sdpa

SIZE = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]])  # one clip, F = 2 frames of M = 2 slots


def ledger(prefix: int) -> Ledger:
    written = Ledger(1)
    nobody = MergeMap(torch.zeros(1, 4).long(), SIZE.flatten(1), torch.zeros(1, 4, 3), ((2, 2), (2, 2)))
    written.write(0, Page(SIZE, torch.zeros(1, 2, 2, 3), prefix), nobody)
    return written


def repeated(x_BAKD: Tensor, size_K: Tensor) -> Tensor:
    return x_BAKD.repeat_interleave(size_K.long(), dim=2)


def test_a_key_counts_as_often_as_its_size() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    module = nn.Module()
    setattr(module, SIZES, KeySizes(ledger(prefix=1), 0))
    size_K = torch.tensor([1, 1, 3, 2, 5])  # the class token, then frame by frame
    expected = scaled_dot_product_attention(query, repeated(key, size_K), repeated(value, size_K), scale=0.3)
    for attend in (sized_sdpa, sized_eager):
        out, _ = attend(module.eval(), query, key, value, None, scaling=0.3)
        torch.testing.assert_close(out.transpose(1, 2), expected)


def test_a_module_without_sizes_attends_as_ever() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    mask = torch.randn(1, 1, 5, 5)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    for attend in (sized_sdpa, sized_eager):
        out, _ = attend(nn.Module().eval(), query, key, value, mask, scaling=0.3)
        torch.testing.assert_close(out.transpose(1, 2), expected)


def test_probabilities_weighed_after_the_softmax_are_those_of_log_sizes_before_it() -> None:
    torch.manual_seed(0)
    keys = {
        "joint": torch.tensor([[1.0, 1, 2, 3, 5]]),  # place by place behind the class token
        "space": torch.tensor([[1.0, 1, 3], [1, 2, 5]]),  # a row a frame, its class token first
        "time": torch.tensor([[1.0, 2], [3, 5]]),  # a row a place
    }
    for over, size_BK in keys.items():
        scores = torch.randn(len(size_BK), 2, 4, size_BK.shape[1])
        (weighed,) = SizedProbabilities(ledger(prefix=1), 0, over)(nn.Module(), (scores.softmax(-1),))
        torch.testing.assert_close(weighed, (scores + size_BK.log()[:, None, None]).softmax(-1))
