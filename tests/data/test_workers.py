"""Worker processes: they end with the stream, and disturb nothing."""

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from sttm.data import workers
from sttm.errors import SttmError
from tests.data.helpers import batch_stream
from tests.helpers import ROOT


def test_workers_end_with_the_stream_and_with_an_exception(videos):
    stream = batch_stream(videos)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []

    def fail() -> None:
        for _ in batch_stream(videos):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_one_sentence_at_the_next_step_and_not_before(videos):
    handler = signal.getsignal(signal.SIGCHLD)
    stream = batch_stream(videos)
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == handler
    for child in multiprocessing.active_children():
        child.kill()
    time.sleep(0.2)  # a step of training goes on undisturbed
    with pytest.raises(SttmError, match="worker process that decodes videos has died") as caught:
        for _ in range(9):  # some are waiting already
            next(stream)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_a_worker_that_died_with_a_lock_in_its_hands_does_not_hold_up_the_end(videos, monkeypatch):
    """It may hold the lock of torch's event for the end, which it looks at all the time."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Iterator

    events: list[Any] = []
    start = Iterator._try_get_data

    def seen(self, *arguments):
        events.append(self._workers_done_event)
        return start(self, *arguments)

    monkeypatch.setattr(Iterator, "_try_get_data", seen)
    stream = batch_stream(videos)
    next(stream)
    assert events[0]._cond.acquire(timeout=10)  # as a process does that is then killed
    stream.close()
    assert multiprocessing.active_children() == []


def test_workers_leave_signals_to_their_parent(videos):
    """Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent decides what to do about it."""
    stream = batch_stream(videos)
    next(stream)
    for child in multiprocessing.active_children():
        assert child.pid
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    for _ in range(12):
        next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []


def test_ctrl_c_leaves_no_process_and_no_traceback_of_a_worker(videos, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, signal, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "from sttm.data.datasets.video_set import Video, VideoSet\n"
        "from tests.data.helpers import batch_stream\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell in the background has it ignored
        "videos = VideoSet(tuple(Video(path, 0) for path in sys.argv[1:]), ('a',), (), '', False)\n"
        "try:\n"
        "    for step, _ in enumerate(batch_stream(videos)):\n"
        "        if step == 3:\n"
        "            os.killpg(0, signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', multiprocessing.active_children())\n"
    )
    command = [sys.executable, "-W", "error", str(program), *[video.path for video in videos.videos]]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("stopped []\n", "", 0)


def test_no_warning_with_more_workers_than_cores(videos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(batch_stream(videos, workers=(os.cpu_count() or 1) + 1, last_step=2))) == 2


class TooLarge(Dataset[torch.Tensor]):
    """An item for which the worker finds no shared memory."""

    def __getitem__(self, _: int) -> torch.Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        return torch.zeros(100_000)


class Stuck(Dataset[torch.Tensor]):
    """An item that never comes."""

    def __getitem__(self, _: int) -> torch.Tensor:
        time.sleep(600)
        raise AssertionError


class Broken(Dataset[torch.Tensor]):
    """A mistake in the code that makes items."""

    def __getitem__(self, _: int) -> torch.Tensor:
        raise ZeroDivisionError("it was me")


def test_a_worker_that_cannot_hand_over_says_why():
    with pytest.raises(SttmError, match=r"cannot hand over what it decoded \(.+\); free shared memory") as caught:
        list(workers.load_in_order(TooLarge(), [0, 1], 1))
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_the_error_of_a_worker_is_shown():
    with pytest.raises(ZeroDivisionError, match="it was me"):
        list(workers.load_in_order(Broken(), [0, 1], 1))
    assert multiprocessing.active_children() == []


def test_a_wait_is_bounded_and_can_be_ended(monkeypatch):
    seen: list[float] = []

    def stop(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(workers.load_in_order(Stuck(), [0], 1, stop))
    assert 0 < seen[0] < seen[1]
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    with pytest.raises(SttmError, match="have given nothing for"):
        list(workers.load_in_order(Stuck(), [0], 1))
    assert multiprocessing.active_children() == []
