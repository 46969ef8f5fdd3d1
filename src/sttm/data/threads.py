"""Threads that work ahead of whoever takes their results: every wait for one is bounded, and ends with Ctrl-C."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from sttm.data.workers import PATIENCE, POLL
from sttm.errors import SttmError

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple[Future[Result], Item]

#: Seconds after which one item must be done, though its thread is at work all the time.
LONGEST = 6 * 3600.0
#: Seconds that the threads have to end what they are at, once nobody takes results any more.
FAREWELL = 5.0


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    ahead: int,
    waiting: Callable[[float], None] = lambda seconds: None,
    name: Callable[[Item], object] = lambda item: getattr(item, "path", item),
) -> Generator[Result]:
    """Yield the function of each item, in order, worked out by threads up to `ahead` items before it is taken.

    An exception of the function is raised here. Closing the generator ends the threads; one that does not end, as its
    disk does not answer, is left behind and holds up neither this nor the end of the program.

    Args:
        waiting: called about once a second while no result comes, with the seconds since the last one; what it raises
            ends the wait.
        name: returns how an item is called in messages.

    Raises:
        SttmError: if a thread neither gives a result nor works for `PATIENCE` seconds, or takes `LONGEST` for one.
    """
    jobs: SimpleQueue[Job[Result, Item] | None] = SimpleQueue()
    to_do, pending = iter(items), deque[Job[Result, Item]]()
    # Not an executor: Python waits for its threads at the end of the program, for ever if need be.
    pool = [Thread(target=_work, args=(function, jobs), name=f"sttm-read-{n}", daemon=True) for n in range(threads)]
    for thread in pool:
        thread.start()
    try:
        while True:
            for item in islice(to_do, ahead - len(pending)):
                pending.append((Future(), item))
                jobs.put(pending[-1])
            if not pending:
                return
            future, item = pending.popleft()
            yield _result(future, name(item), waiting)
    finally:
        for future, _ in pending:
            future.cancel()
        for _ in pool:
            jobs.put(None)
        end = time.monotonic() + FAREWELL
        for thread in pool:
            thread.join(max(0.0, end - time.monotonic()))


def _work(function: Callable[[Item], Result], jobs: SimpleQueue[Job[Result, Item] | None]) -> None:
    """Do jobs until there is a None among them."""
    while (job := jobs.get()) is not None:
        future, item = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:  # it is raised where the result is taken
                future.set_exception(error)


def _result(future: Future[Result], name: object, waiting: Callable[[float], None]) -> Result:
    """Return a result; while there is none, look up at every `POLL` seconds."""
    began = idle_since = time.monotonic()
    worked = time.process_time()
    while True:
        try:
            return future.result(POLL)
        except TimeoutError:
            if future.done():  # one of the function's own
                raise
        now = time.monotonic()
        waiting(now - began)
        # Seconds of any processor: a long video that must be decoded from its start is no reason to give up.
        if time.process_time() - worked > POLL / 20:
            worked, idle_since = time.process_time(), now
        if now - idle_since > PATIENCE or now - began > LONGEST:
            raise SttmError(
                f"{name} has been read for {now - began:.0f} s without an end; check the disk that it is on and the "
                "file itself, and start again"
            )
