"""Worker processes that make items ahead of their taker, in order, and leave the rest of the program alone.

torch's DataLoader does the work; here it is kept from drawing random numbers, from warning, and from striking down
a training step with its signal handler.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from sttm.errors import SttmError

Item = TypeVar("Item", covariant=True)


class Maker(Protocol[Item]):
    """What makes an item of each order."""

    def __getitem__(self, order: Any, /) -> Item: ...


class Orders(Protocol):
    """What is to be made."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def load_in_order(maker: Maker[Item], orders: Orders, workers: int) -> Generator[Item]:
    """Make an item of each order in worker processes, or in this one where `workers` is 0.

    Closing the generator ends the workers at once.

    Raises:
        SttmError: if a worker dies.
    """
    with _quiet_start():
        loader: Any = DataLoader(
            maker,  # type: ignore[arg-type]
            sampler=orders,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_parent,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # or it would draw from the one that dropout uses
        )
        items = iter(loader)
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                raise _explained(error) from None
            yield item
    finally:
        if workers:
            _stop(items)


def _stop(items: Any) -> None:
    """Kill the workers, which have nothing to lose.

    torch would ask them, through a lock that waits for ever if a worker has died while it held it.
    """
    if not items._shutdown:
        items._shutdown = True
        torch._C._remove_worker_pids(id(items))  # or another DataLoader's handler would report them
        items._worker_pids_set = False
    for process in items._workers:
        process.kill()
        process.join()
    for queue in items._index_queues:
        queue.cancel_join_thread()
        queue.close()


def _explained(error: RuntimeError) -> RuntimeError | SttmError:
    if "DataLoader worker" not in str(error):
        return error
    return SttmError(
        "A worker process that decodes videos has died, most often for want of memory (or of shared memory, "
        "/dev/shm); give fewer data.workers or less data.cache_gib, and start again."
    )


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start workers without warnings, and without torch's handler for dead ones, which raises anywhere in a step.

    Ctrl-C and SIGTERM wait meanwhile: workers inherit that, so that none dies of one before it can ignore it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if is_main and hasattr(signal, "SIGCHLD") else None
    can_wait = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if can_wait else None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # the workers use neither threads nor GPU
            yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave_signals_to_parent(_: int) -> None:
    """Ignore Ctrl-C and the scheduler's SIGTERM, which reach a whole group: the parent ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(item: Item) -> Item:  # type: ignore[misc]
    return item
