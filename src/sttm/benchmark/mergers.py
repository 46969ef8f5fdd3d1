"""The mergers' own share of a forward's time, in passes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from sttm.benchmark.timing import synchronize
from sttm.patching.hooks import Merger


def merger_share(model: nn.Module, device: torch.device, forward: Callable[[], object], passes: int) -> float:
    """Return the time in the mergers' hooks over that of the whole forward: the median of some passes.

    A hook's time is all that stands between the tokens before a merger and those after it: choosing, matching,
    averaging, positions, and the copies between layouts. What blocks do with slots afterwards (log sizes in attention)
    is not in it. On a GPU the stream is synchronised around each hook, so that its kernels are timed, not their launch.
    """
    shares = []
    with _timed_hooks(model, device) as spent:
        for _ in range(passes):
            spent.clear()
            synchronize(device)
            started = time.perf_counter()
            forward()
            synchronize(device)
            shares.append(sum(spent) / (time.perf_counter() - started))
    return float(np.median(shares))


@contextmanager
def _timed_hooks(model: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Time every call of a hook that belongs to a merger while inside; the list gets the seconds of each call."""
    spent: list[float] = []

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            synchronize(device)
            started = time.perf_counter()
            try:
                return hook(*args)
            finally:
                synchronize(device)
                spent.append(time.perf_counter() - started)

        return run

    registries = [registry for m in model.modules() for registry in (m._forward_pre_hooks, m._forward_hooks)]
    # A hook is a merger itself, or one of its methods.
    found = [
        (registry, number, hook)
        for registry in registries
        for number, hook in registry.items()
        if isinstance(getattr(hook, "__self__", hook), Merger)
    ]
    for registry, number, hook in found:
        registry[number] = timed(hook)
    try:
        yield spent
    finally:
        for registry, number, hook in found:
            registry[number] = hook
