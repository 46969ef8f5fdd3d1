"""What the two spawned processes of the list run, and how gradients are compared."""

from __future__ import annotations

from multiprocessing.sharedctypes import Synchronized
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sttm.patching import api
from sttm.patching.plan import Plan
from tests.helpers import answer, logits

Gradients = dict[str, torch.Tensor]


def join(counter: Synchronized[int], store: str) -> None:
    """Take a rank and join the process group of both."""
    torch.set_num_threads(1)
    with counter.get_lock():
        rank, counter.value = counter.value, counter.value + 1
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


def gradients(model: Any, clips: torch.Tensor) -> Gradients:
    """Return the gradients of the mean square of the answers."""
    answer(model, clips).square().mean().backward()
    return {name: p.grad.clone() for name, p in api.unwrap(model).named_parameters() if p.grad is not None}


def ddp_step(model: Any, clips: torch.Tensor) -> Gradients:
    """Return the gradients that DDP leaves in this process, whose clips these are."""
    return gradients(nn.parallel.DistributedDataParallel(model, find_unused_parameters=True), clips)


def answer_of(model: Any, clips: torch.Tensor) -> tuple[torch.Tensor, Plan]:
    """Return what a model says that came from another process, and its plan."""
    return logits(model, clips), api.plan_of(model)


def assert_same(found: Gradients, expected: Gradients) -> None:
    """Assert that all gradients are the same but for rounding; what has none may have zeros."""
    assert expected.keys() <= found.keys() and len(expected) > 40
    for name, gradient in found.items():
        wanted = expected.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6, msg=name)
