"""Read videos in processes of their own, with limits of time and memory: a file that crashes, hangs or swells the
decoder costs its own row alone.

A `ReadingProcess` starts one Python process, which loads the decoder once and then forks the one that reads. The reader
ends itself: an alarm of the system ends it after the time limit, also inside of C code, and the system refuses it
memory beyond the limit. Its parent sees how it ended, says so, and forks the next one within milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sttm.data.loader import Read, Sample, read_crops
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.errors import SttmError

#: Seconds beyond the time limit, and for the start of a process, after which it is killed from outside.
GRACE = 30.0
_ADVICE = "convert it to mp4 or download it again"


@dataclass(frozen=True)
class Limits:
    """What reading one video may take."""

    seconds: float = 60.0
    gib: float = 4.0
    """Of memory, above what the process has before it reads."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.seconds <= 86_400:
            raise SttmError(f"a time limit of {self.seconds:g} s is not between 0.1 s and a day; give, say, 60")
        if not 0.25 <= self.gib <= 4096:
            raise SttmError(f"a memory limit of {self.gib:g} GiB is not between 0.25 and 4096; give, say, 4")


@contextmanager
def isolated(workers: int, limits: Limits | None = None) -> Iterator[Read]:
    """Yield a function like `read_crops` that reads in `workers` processes of their own, one video in each at a time.

    Threads may call it together: one that finds no idle process waits. All processes end with the block.

    Raises:
        SttmError: on a system that cannot fork.
    """
    if not hasattr(os, "fork"):
        raise SttmError("reading in processes of their own needs fork, which this system lacks; leave --isolate out")
    processes = [ReadingProcess(limits or Limits()) for _ in range(max(workers, 1))]
    idle: SimpleQueue[ReadingProcess] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def read(index: int, video: Video, preprocess: Preprocess, views: tuple[int, int]) -> Sample:
        process = idle.get()
        try:
            return process.read(index, video, preprocess, views)
        finally:
            idle.put(process)

    try:
        yield read
    finally:
        for process in processes:
            process.close()


class ReadingProcess:
    """A process that reads one video at a time within limits; it starts when it is first used."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None

    def read(self, index: int, video: Video, preprocess: Preprocess, views: tuple[int, int]) -> Sample:
        """Return what `read_crops` returns, or a Sample whose error says how the reader ended."""
        job = pickle.dumps((index, video, preprocess, views, self.limits))
        for last in (False, True):  # a process may have been ended from outside, which says nothing of the video
            if self._closed:
                break
            try:
                pipe = self._pipe or self._start()
                pipe.send_bytes(job)
                if pipe.poll(self.limits.seconds + GRACE):
                    answer = pickle.loads(pipe.recv_bytes())
                    if answer == signal.SIGKILL and not last:
                        continue
                    return answer if isinstance(answer, Sample) else self._failed(index, video, answer)
                self._end()
                return self._failed(index, video, signal.SIGALRM)
            except (EOFError, OSError):
                self._end()
        error = f"the process that reads {video.path} has ended or cannot be started; see sttm doctor"
        return Sample(index, video.path, video.label, None, (), error, 0.0, 0)

    def close(self) -> None:
        """End the process, also while another thread waits for it; nothing is read after that."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if process is not None:
            process.kill()  # the reader ends with it, as its pipe does
            process.wait()
        if pipe is not None and not self._closed:  # else the thread that waits sees its end
            pipe.close()

    def _start(self) -> Connection[Any, Any]:
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from sttm.data.isolated import _serve; _serve({theirs.fileno()})"
            places = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": places},
            )  # fmt: skip
        self._pipe = Connection(ours.detach())
        return self._pipe

    def _failed(self, index: int, video: Video, number: int) -> Sample:
        """Return the sample of a video whose reader was ended by a signal."""
        match number:
            case signal.SIGALRM:
                taken = f"takes longer than the {self.limits.seconds:g} s that reading one video may"
                error = f"{video.path} {taken}; {_ADVICE}, or allow more time"
            case signal.SIGKILL:
                error = f"the process that read {video.path} was killed, most often for want of memory; {_ADVICE}"
            case _:
                error = f"{video.path} crashes the decoder ({_name(number)}); {_ADVICE}"
        seconds = self.limits.seconds if number == signal.SIGALRM else 0.0
        return Sample(index, video.path, video.label, None, (), error, seconds, 0)


def _name(number: int) -> str:
    """Return the name of a signal, or of an exit code."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit code {-number}"


# --- In the process that was started -------------------------------------------------------------------------


def _serve(descriptor: int) -> None:
    """Hand jobs to a forked reader and its answers back, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends this process
    parent = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        reader, pipe = _fork(parent)
        while True:
            job = parent.recv_bytes()
            ended = False
            try:
                pipe.send_bytes(job)
                if parent in wait([pipe, parent]):  # it is gone, or gave up waiting
                    break
                answer = pipe.recv_bytes()
            except (EOFError, OSError):
                ended = True
            if ended:
                pipe.close()
                code = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
                answer = pickle.dumps(-code)
                reader, pipe = _fork(parent)
            parent.send_bytes(answer)
    os.kill(reader, signal.SIGKILL)


def _fork(parent: Any) -> tuple[int, Any]:
    """Fork a reader; return its process id and the pipe to it."""
    ours, theirs = Pipe()
    reader = os.fork()
    if reader:
        theirs.close()
        return reader, ours
    try:
        ours.close()
        parent.close()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _read_all(theirs)
    finally:
        os._exit(0)


def _read_all(pipe: Any) -> None:
    """Read the video of each job within its limits, until the other end of the pipe is closed."""
    limited = False
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            *job, limits = pickle.loads(pipe.recv_bytes())
            if not limited:
                _limit_memory(limits.gib)
                limited = True
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)
            sample = read_crops(*job)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if sample.error is not None and ("MemoryError" in sample.error or "allocate memory" in sample.error):
                needed = f"{sample.path} takes more than the {limits.gib:g} GiB of memory that reading one video may"
                sample = replace(sample, error=f"{needed}; {_ADVICE}, or allow more memory")
            pipe.send_bytes(pickle.dumps(sample))


def _limit_memory(gib: float) -> None:
    """Let this process have so much more memory than it has now, where the system tells how much that is."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(gib * 2**30)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
