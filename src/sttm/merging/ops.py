"""Operations that all reducers share: rows by index, averages by slot, tables, and linear maps in the weights' dtype.

Legend: B clips, F windows, L tokens in a window, K picks in a window, M slots in a window, C width; N = B*F*L tokens
and R = B*F*M slots of the whole batch, as rows of one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on the device of `x`."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def standardised(x_C: Tensor) -> Tensor:
    """Scale each token to mean 0 and variance 1 over its channels, in float32 or finer."""
    return layer_norm(x_C.to(torch.promote_types(x_C.dtype, torch.float32)), x_C.shape[-1:])


def centred(x_BFKC: Tensor, window_BFLC: Tensor) -> Tensor:
    """Subtract the mean of a window's tokens: what all of them share tells none from another."""
    return x_BFKC - window_BFLC.mean(2, keepdim=True)


def linear(layer: nn.Module, x_C: Tensor) -> Tensor:
    """Call `layer` on `x`, cast to the dtype of its weights.

    The module itself is called, so that hooks, adapters, offloading and sharding work. A layer whose `weight` is not a
    floating tensor (one that `quantize_dynamic` made) gets `x` as it is.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        x_C = x_C.to(weight.dtype)
    return layer(x_C)


def rows(index_BFK: Tensor, length: int) -> Tensor:
    """Turn indices into windows of `length` into row numbers of a table of all windows: [B F K] -> [B*F*K]."""
    B, F, _ = index_BFK.shape
    window_BF1 = torch.arange(B * F, device=index_BFK.device).view(B, F, 1)
    return torch.add(index_BFK, window_BF1, alpha=length).flatten()


def take(x_BFLC: Tensor, index_BFK: Tensor) -> Tensor:
    """Return the tokens at these indices: [B F L C], [B F K] -> [B F K C]."""
    # Copying whole rows of one long table is faster than a gather channel by channel.
    row_N = rows(index_BFK, x_BFLC.shape[2])
    return x_BFLC.flatten(0, 2).index_select(0, row_N).view(*index_BFK.shape, x_BFLC.shape[3])


def averages(slot_BFL: Tensor, count: int, size_BFL: Tensor, *values_BFLC: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Average values over the tokens of each slot, weighted by size; every slot needs one token at least.

    Args:
        slot_BFL: the slot of each token, from 0 to count - 1.
        count: slots in a window, M.
        size_BFL: weight of each token.
        values_BFLC: what to average; each may have a width of its own.

    Returns:
        The sizes of the slots [B F M], and the average of each value [B F M C] in the dtype of that value.
    """
    B, F, _ = slot_BFL.shape
    row_N, size_N1 = rows(slot_BFL, count), size_BFL.reshape(-1, 1)
    # One zero that is read as a table, so that a sum makes a single table: memory costs more than the sums.
    zero_R1 = size_N1.new_zeros(1, 1).expand(B * F * count, 1)
    size_R1 = zero_R1.index_add(0, row_N, size_N1)
    means = []
    for value_BFLC in values_BFLC:
        value_NC = value_BFLC.flatten(0, 2).to(size_N1.dtype)
        sum_RC = zero_R1.expand(-1, value_NC.shape[1]).index_add(0, row_N, size_N1 * value_NC)
        means.append((sum_RC / size_R1).to(value_BFLC.dtype).view(B, F, count, -1))
    return size_R1.view(B, F, count), means


def averages_by_share(share_BFML: Tensor, size_BFL: Tensor, *values_BFLC: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Average values over the tokens of each slot, weighted by share and size, as products of matrices.

    Args:
        share_BFML: the share that each slot has of each token.
        size_BFL, values_BFLC: as in `averages`.

    Returns:
        As `averages`.
    """
    mass_BFML = share_BFML * size_BFL[:, :, None]
    size_BFM = mass_BFML.sum(-1)
    weight_BFML = mass_BFML * size_BFM.reciprocal()[..., None]
    return size_BFM, [weight_BFML.to(value_BFLC.dtype) @ value_BFLC for value_BFLC in values_BFLC]


def adds_in_order(x: Tensor) -> bool:
    """Return whether sums by index have a fixed order: on a CPU, operation by operation.

    On other devices, and in compiled code, several threads may add to one row in any order.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return x.device.type == "cpu" and not traced


class Table(nn.Module):
    """A table of integers that depends on the number of tokens in a window alone.

    It is a buffer where that number is known when the module is made, as tracing and export need it; elsewhere each
    call makes it again.

    Args:
        rule: returns the numbers for a length.
        length: tokens in a window, L; None where it is unknown.
    """

    numbers: Tensor | None

    def __init__(self, rule: Callable[[int], Sequence[int]], length: int | None) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("numbers", None if length is None else torch.tensor(rule(length)), persistent=False)

    def forward(self, x_BFLC: Tensor) -> Tensor:
        """Return the numbers for the windows of `x` (any tensor whose third axis is L), as int64."""
        if self.numbers is not None:
            return self.numbers
        return torch.tensor(self.rule(x_BFLC.shape[2]), device=x_BFLC.device)
