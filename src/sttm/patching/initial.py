"""New weights for a merged model that was made without any, as on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn


class InitWeights:
    """Stand in for transformers' `_init_weights` of a model, or its base, while it is merged.

    transformers calls it for every module, inner ones first, and knows nothing of mergers: their linear maps would
    start at random, and their tables would stay as the memory was. A merger gets the values of a new one.
    """

    def __init__(self, owner: Any, mergers: Sequence[nn.Module], build: Callable[[], Sequence[nn.Module]]) -> None:
        self.owner, self.mergers, self.build = owner, mergers, build

    def __call__(self, module: nn.Module) -> None:
        type(self.owner)._init_weights(self.owner, module)
        if module in self.mergers:
            from transformers import initialization

            new = _tensors(self.build()[self.mergers.index(module)])
            for name, tensor in _tensors(module).items():
                initialization.copy_(tensor, new[name])  # but where it was loaded


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))
