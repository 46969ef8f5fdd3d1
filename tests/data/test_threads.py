"""Threads that read ahead: results in order, bounded waits, and an end even where a thread has none."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sttm.data import threads
from sttm.data.threads import map_ahead
from sttm.errors import SttmError
from tests.helpers import ROOT


@pytest.fixture
def stuck(monkeypatch):
    """Return a function that ends for even numbers only, until the test is over."""
    monkeypatch.setattr(threads, "POLL", 0.05)
    monkeypatch.setattr(threads, "FAREWELL", 0.1)
    over = threading.Event()

    def double(number: int) -> int:
        if number % 2:
            over.wait()
        return 2 * number

    yield double
    over.set()


def test_results_come_in_order_and_no_more_than_asked_are_worked_out():
    begun = []

    def slow_first(number: int) -> int:
        begun.append(number)
        time.sleep(0.05 if number == 0 else 0)
        return 2 * number

    before = threading.active_count()
    results = map_ahead(slow_first, range(100), 3, ahead=5)
    assert [next(results) for _ in range(4)] == [0, 2, 4, 6]
    results.close()
    assert max(begun) <= 8 and threading.active_count() == before
    assert list(map_ahead(slow_first, [], 2, ahead=4)) == []


def test_a_wait_is_bounded_and_can_be_ended(stuck, monkeypatch):
    seen: list[float] = []

    def stop(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 2:
            raise InterruptedError

    results = map_ahead(stuck, [0, 1, 2], 2, ahead=3, waiting=stop)
    assert next(results) == 0
    with pytest.raises(InterruptedError):
        next(results)
    assert 0 < seen[0] < seen[1]
    monkeypatch.setattr(threads, "PATIENCE", 0.2)
    with pytest.raises(SttmError, match=r"^1 has been read for \d+ s without an end; check the disk"):
        list(map_ahead(stuck, [0, 1, 2], 2, ahead=3))


def test_a_thread_at_work_is_waited_for_longer_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(threads, "POLL", 0.05)
    monkeypatch.setattr(threads, "PATIENCE", 0.1)

    def busy(seconds: float) -> float:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return seconds

    assert list(map_ahead(busy, [0.5], 1, ahead=1)) == [0.5]
    monkeypatch.setattr(threads, "LONGEST", 0.2)
    with pytest.raises(SttmError, match="without an end"):
        list(map_ahead(busy, [0.5], 1, ahead=1))


@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError, SystemExit])
def test_the_error_of_a_thread_is_shown(error):
    def fail(number: int) -> int:
        raise error("it was me")

    with pytest.raises(error, match="it was me"):
        list(map_ahead(fail, [1, 2], 2, ahead=2))


STUCK = """
import sys, time
from sttm import cli
from sttm.data.video.video import Video

def read(self, *args, **options):
    print("reading", flush=True)
    time.sleep(600)

Video.read = read
sys.argv = ["sttm", *sys.argv[1:]]
cli.main()
"""


def test_ctrl_c_ends_a_prediction_whose_disk_does_not_answer(small_model, clips):
    command = [sys.executable, "-c", STUCK, "predict", str(clips / "a.mp4"), "--model", str(small_model)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a shell in the background ignores it
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == "reading\n"
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (130, "sttm: interrupted\n")
