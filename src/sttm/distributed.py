"""The processes that torchrun started: joining them, and leaving them in peace."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

#: Seconds for gloo's threads to let go of the tensors of the last collective.
PAUSE = 0.2


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[int, int]]:
    """This process's rank, and how many there are: those that torchrun started, joined while inside, or one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), world
    finally:
        settle()
        dist.destroy_process_group()


def settle() -> None:
    """Waits before the process group is destroyed, without the interpreter's lock.

    A gloo thread needs the lock to let go of the tensors of a collective that has just ended. The group's destructor
    holds it while it waits for that thread: right after a collective, the two would wait for each other for ever.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        time.sleep(PAUSE)
