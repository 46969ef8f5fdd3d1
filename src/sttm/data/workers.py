"""Worker processes that load items ahead and in order, without side effects on the rest of the program.

torch's DataLoader does the work; here it is kept from using the global random state, from warning, and from
interrupting a training step with its signal handler.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from sttm.errors import SttmError, first_line

Item = TypeVar("Item")

#: Seconds between two looks at what else happens, while the workers are busy.
POLL = 1
#: Seconds without an item after which something must be wrong.
PATIENCE = 600.0


def load_in_order(
    dataset: Dataset[Item],
    sampler: Iterable[Any],
    workers: int,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Generator[Item]:
    """Load the item of each key in worker processes, or in this one where `workers` is 0.

    Closing the generator ends the workers at once.

    Args:
        waiting: called about once a second while no item comes, with the seconds since the last one; what it raises
            ends the wait.

    Raises:
        SttmError: if a worker dies, cannot hand over an item, or gives none for `PATIENCE` seconds.
    """
    with _quiet_start():
        loader: Any = DataLoader(
            _Packed(dataset) if workers else dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            collate_fn=_identity,
            worker_init_fn=_ignore_signals,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # or it would use the global one, which dropout uses
            timeout=POLL if workers else 0,
        )
        items = iter(loader)
    try:
        while True:
            try:
                item = _next(items, waiting)
            except StopIteration:
                return
            yield _unpacked(item) if workers else item
    finally:
        if workers:
            _stop(items)


def _next(items: Any, waiting: Callable[[float], None]) -> Any:
    """Return the next item; while there is none, look up at every `POLL` seconds."""
    began = time.monotonic()
    while True:
        try:
            return next(items)
        except RuntimeError as error:
            if "timed out after" not in str(error):
                raise _worker_error(error) from None
        seconds = time.monotonic() - began
        waiting(seconds)
        if seconds > PATIENCE:
            raise SttmError(
                f"the worker processes that decode videos have given nothing for {seconds:.0f} s; check the disk that "
                "the videos are on (sttm data check reads each), and start again"
            )


class _Packed(Dataset[bytes | str]):
    """Items as bytes, with their tensors in shared memory: what cannot be handed over fails here, in the worker.

    torch would find out in a thread of the worker, which drops the item, and the parent would wait for it for ever.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> bytes | str:
        """Return the bytes of an item, or in words why there are none."""
        item = self.dataset[key]
        try:
            return bytes(ForkingPickler.dumps(item))
        except (OSError, RuntimeError, MemoryError) as error:
            return first_line(error)


def _unpacked(item: bytes | str) -> Any:
    if isinstance(item, str):
        raise SttmError(
            f"a worker process cannot hand over what it decoded ({item}); free shared memory (/dev/shm), raise the "
            "limit on the size of files (ulimit -f), or set data.workers=0"
        )
    try:
        return ForkingPickler.loads(item)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        raise _died() from error  # before it could hand over the tensors of this item


def _died() -> SttmError:
    return SttmError(
        "a worker process that decodes videos has died, most often because memory (or shared memory, /dev/shm) ran "
        "out; give fewer data.workers or less data.cache_gib, and start again"
    )


def _stop(items: Any) -> None:
    """Kill the workers, which hold no state worth saving.

    torch would ask them to end, through a lock that blocks for ever if a worker has died while it held it.
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


def _worker_error(error: RuntimeError) -> RuntimeError | SttmError:
    """Return one sentence for the death of a worker, any other error as it is."""
    if "DataLoader worker" not in str(error) or "Caught" in str(error):
        return error
    return _died()


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start workers without warnings, and without torch's SIGCHLD handler, which could raise anywhere in a step.

    Ctrl-C and SIGTERM are blocked meanwhile: workers inherit that, so that none dies of one before it ignores them.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if is_main and hasattr(signal, "SIGCHLD") else None
    can_block = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if can_block else None
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


def _ignore_signals(_: int) -> None:
    """Ignore Ctrl-C and the scheduler's SIGTERM, which reach the whole process group: the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _identity(item: Item) -> Item:
    return item
