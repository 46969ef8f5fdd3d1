"""The peak memory of one forward, on a CPU or a GPU."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(model: nn.Module, pixels: Tensor, forward: Callable[[], None]) -> int:
    """Return the most bytes in use at once in one forward: weights, pixels, and every tensor made between."""
    given = [*model.parameters(), *model.buffers(), pixels]
    own = sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in given}.values())
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)
        torch.cuda.reset_peak_memory_stats(pixels.device)
        before = torch.cuda.memory_allocated(pixels.device)
        forward()
        return own + torch.cuda.max_memory_allocated(pixels.device) - before
    with _LiveStorages(given) as live:
        forward()
    return own + live.peak


class _LiveStorages(TorchDispatchMode):
    """Count the bytes of every storage that operations make, from its first use until it is freed.

    On a CPU no allocator counts, and the memory of the process belongs to all variants together.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]:
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._remove, storage._cdata)
        return result

    def _remove(self, address: int) -> None:
        self.now -= self.sizes.pop(address)
