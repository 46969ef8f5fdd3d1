"""Size-proportional attention through transformers' attention interface.

A slot that stands for n tokens gets log n added to its scores, so that softmax counts it n times. Source: Bolya et al.,
"Token Merging: Your ViT But Faster", ICLR 2023, section 3 (proportional attention).

Legend: B clips, A heads, Q queries, K keys, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sttm.backbones.base import Ledger
from sttm.errors import SttmError
from sttm.patching.edits import Patch

# Attention modules carry, under this name, where to read the sizes of their keys.
SIZES = "sttm_sizes"


class KeySizes:
    """Reads the log sizes of the keys as a bias on the scores: [B 1 1 K]."""

    def __init__(self, ledger: Ledger, index: int) -> None:
        self.ledger, self.index = ledger, index

    def bias(self, dtype: torch.dtype) -> Tensor:
        return self.ledger.read(self.index).log_size(time_minor=False)[:, None, None].to(dtype)


def _bias(module: nn.Module, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores of this module: its own mask, and the sizes of its keys if it has merged ones."""
    sizes = getattr(module, SIZES, None)
    if sizes is None:
        return mask
    return sizes.bias(dtype) if mask is None else sizes.bias(dtype) + mask


def sized_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Fused attention: [B A Q D] -> [B Q A D]."""
    bias = _bias(module, attention_mask, query.dtype)
    out = scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def sized_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in the open, for those who want to see its probabilities: [B A Q D] -> [B Q A D], [B A Q K]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scaling
    bias = _bias(module, attention_mask, scores.dtype)
    probabilities = (scores if bias is None else scores + bias).softmax(-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities


SIZED = {"sdpa": "sttm_sdpa", "eager": "sttm_eager"}
AttentionInterface.register("sttm_sdpa", sized_sdpa)
AttentionInterface.register("sttm_eager", sized_eager)


def check_attention(model: Any) -> None:
    """Raises SttmError where the model attends in a way that takes no bias on its scores."""
    current = model.config._attn_implementation
    if current not in SIZED:
        raise SttmError(
            f"size-proportional attention works with sdpa or eager attention and the model uses {current!r}; "
            "call model.set_attn_implementation('sdpa') first"
        )


def weigh_keys(patch: Patch, model: Any, modules: list[tuple[nn.Module, int]], ledger: Ledger) -> None:
    """Lets attention modules weigh their keys by the sizes after merger `index`, for each (module, index)."""
    check_attention(model)
    sized = SIZED[model.config._attn_implementation]
    for config in {id(m.config): m.config for m, _ in modules}.values():
        patch.set_attribute(config, "_attn_implementation", sized)
    for module, index in modules:
        patch.set_attribute(module, SIZES, KeySizes(ledger, index))
