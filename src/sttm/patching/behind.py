"""The hooks behind the blocks of a merged model: what its head reads of the tokens, or all tokens back.

Legend: B clips, N tokens with their P prefix tokens, F frames and M slots after the last merger, T x S the first grid,
C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones.base import Backbone, Grid
from sttm.merging.tokens import compose
from sttm.patching.state import Key, current, local

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class KeepHidden:
    """Keep what the base returns, for a head that reads the tokens itself."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: Args, output: Any) -> None:
        if local.states and local.states[-1].key is self.key:
            local.states[-1].hidden_BNC = output[0]


class ReadTokens:
    """Give the head what it reads of merged tokens: their mean by size, or the slot that the first token went to."""

    def __init__(self, key: Key, reads: str, backbone: Backbone, prefix: int) -> None:
        self.key, self.reads, self.backbone, self.prefix = key, reads, backbone, prefix

    def __call__(self, module: nn.Module, args: Args) -> tuple[Tensor]:
        state = current(self.key)
        hidden_BNC: Tensor = state.hidden_BNC
        if self.reads == "first":
            index_B1C = compose(state.kept).assignment[:, :1, None].expand(-1, 1, hidden_BNC.shape[-1])
            return (hidden_BNC.gather(1, index_B1C).squeeze(1),)
        assert state.slots is not None
        size_BN = self.backbone.in_order(state.slots.size_BFM)
        weight_BN = size_BN / size_BN.sum(-1, keepdim=True)
        mean_BC = (hidden_BNC[:, self.prefix :] * weight_BN[..., None].to(hidden_BNC.dtype)).sum(1)
        return (torch.cat((hidden_BNC[:, 0], mean_BC), dim=1) if self.reads == "class and mean" else mean_BC,)


class WeighKeys:
    """Let an nn.MultiheadAttention over the tokens count each by its size."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def __call__(self, module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        slots, query_BQC = current(self.key).slots, args[0]
        assert slots is not None
        if slots.log_size_BN is None:
            return args, kwargs
        # [B N] -> [B*A Q N], the heads of a sequence together
        bias_B1N = slots.log_size_BN.to(query_BQC.dtype)[:, None].repeat_interleave(module.num_heads, dim=0)
        return args, kwargs | {"attn_mask": bias_B1N.expand(-1, query_BQC.shape[1], -1)}


class Restore:
    """Return the tokens of the first grid from the last block: each is what its slot is; prefix tokens as they are.

    What follows, a norm or a head, then works as on a plain model, and every mean over tokens counts slots by size.
    """

    def __init__(self, key: Key, backbone: Backbone, grid: Grid) -> None:
        self.key, self.backbone, self.grid = key, backbone, grid

    def __call__(self, module: nn.Module, args: Args, output: Any) -> Any:
        whole = compose(current(self.key).kept)
        hidden_BNC = output[0] if isinstance(output, tuple) else output
        x_BFMC, prefix_BPC = self.backbone.split(hidden_BNC, *whole.grid[1], self.grid.prefix)
        x_BTSC = whole.unmerge(x_BFMC.flatten(1, 2)).unflatten(1, whole.grid[0])
        restored_BNC = self.backbone.join(x_BTSC, prefix_BPC, self.grid.prefix)
        return (restored_BNC, *output[1:]) if isinstance(output, tuple) else restored_BNC
