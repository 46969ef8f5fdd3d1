"""Windows of consecutive frames of a source without an end, read, sampled and cropped by a thread.

The last frames lie in a ring that all windows share, so that memory depends on the window and not on the source.

Legend: C = 3 colours, H height, W width.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from threading import Condition, Event, Thread
from typing import Any, Literal

from torch import Tensor

from sttm.data.live import POLL, FrameSource, name_of, opened
from sttm.data.threads import FAREWELL
from sttm.data.video.container import duration_seconds
from sttm.data.video.decode import FrameReader, ToTensor
from sttm.errors import SttmError

#: Seconds that time stamps may jump ahead by without a remark.
JUMP = 2.0

WhenLate = Literal["skip", "wait"]


@dataclass(frozen=True)
class Window:
    """Some consecutive sampled frames of a source."""

    frames: tuple[Tensor, ...]
    """uint8 CHW, cropped; those that two windows share are the same tensors."""
    times: tuple[float, ...]
    """Seconds from the source's first frame to each."""
    skipped: int
    """Windows before this one that were left out, as the model was late."""
    remarks: tuple[str, ...]
    """What went wrong in the source since the window before."""


@dataclass(frozen=True)
class Sliding:
    """How a source is cut into windows.

    Attributes:
        window: sampled frames of one.
        stride: sampled frames from the start of one window to the start of the next.
        fps: frames sampled in a second; where the source has fewer, all.
        when_late: what happens to windows that the model has no time for: "skip" leaves them out, so that results
            keep up with a camera; "wait" stops reading, so that nothing of a file is left out.
        timeout: seconds without a frame after which a source has failed to start, or has ended.
    """

    window: int
    stride: int
    fps: float
    when_late: WhenLate
    timeout: float


def read_windows(
    source: FrameSource, sliding: Sliding, prepare: Callable[[Tensor], Tensor], note: Callable[[str], None]
) -> Generator[Window]:
    """Yield the windows of a source as soon as their last frame is there; closing the generator ends the reading.

    The last window ends with the source; where that is shorter than a window, its last frame is repeated.

    Args:
        prepare: makes the picture to keep, uint8 CHW, of each sampled frame.
        note: called with a sentence for what is wrong with the source at its end.

    Raises:
        SttmError: if the source cannot be opened, or gives no frame in time.
    """
    reader = _Reader(source, sliding, prepare)
    reader.start()
    try:
        while (window := reader.next()) is not None:
            yield window
        for sentence in reader.last_words():
            note(sentence)
    finally:
        reader.stopped.set()
        reader.join(FAREWELL)


class _Reader(Thread):
    """The thread that reads, and what it hands over, under one lock."""

    def __init__(self, source: FrameSource, sliding: Sliding, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__(name="sttm-stream", daemon=True)  # its source may never answer
        self.source, self.sliding, self.prepare = source, sliding, prepare
        self.name_of_source = name_of(source)
        self.stopped, self.changed = Event(), Condition()
        self.ring: deque[tuple[Tensor, float]] = deque(maxlen=sliding.window)
        self.due: deque[Window] = deque()
        self.sampled = self.covered = self.skipped = 0
        self.remarks: list[str] = []
        self.words: list[str] = []
        self.error: BaseException | None = None
        self.ended = self.began = False
        self.beat = time.monotonic()
        """When the source last gave something, or was last not asked."""

    def next(self) -> Window | None:
        """Return the next window, or None at the end."""
        with self.changed:
            while not self.due and not self.ended:
                self.changed.wait(POLL)
                if not self.due and not self.ended and time.monotonic() - self.beat > self.sliding.timeout:
                    self._give_up()
            if self.due:
                self.beat = time.monotonic()
                self.changed.notify_all()
                return self.due.popleft()
            if self.error is not None:
                raise self.error
            return None

    def last_words(self) -> list[str]:
        """Return what is to be said of the source at its end."""
        left = f"{self.name_of_source}: {self.skipped} windows before its end were skipped, as the model was late"
        return [*self.words, *self.remarks, *([left] if self.skipped else [])]

    def _give_up(self) -> None:
        seconds = f"{self.sliding.timeout:g} s"
        if not self.began:
            raise SttmError(
                f"{self.name_of_source} has given no frame in {seconds}; check that it is sending, or give it a longer "
                "--timeout"
            )
        self.ended = True
        self.words.append(f"{self.name_of_source} gave nothing more for {seconds}, and counts as ended")

    def run(self) -> None:
        """Read the source to its end."""
        try:
            with opened(self.source, self.sliding.timeout, self.stopped) as (container, stream):
                self._read(container, stream)
        except SttmError as error:
            self.error = error
        except Exception as error:  # of FFmpeg, in the middle of a source, or of ours
            self.words.append(f"{self.name_of_source} broke off ({error})")
        with self.changed:
            if self.error is None and not self.began:
                self.error = SttmError(
                    f"{self.name_of_source} holds no frame that can be decoded; check it, and send a pipe MPEG-TS, "
                    "Matroska or mp4 in fragments, as an mp4 may have its index at its end"
                )
            if self.error is None and not self.ended and self.covered < self.sampled:
                self._hand_over()
            self.ended = True
            self.changed.notify_all()

    def _read(self, container: Any, stream: Any) -> None:
        frames, convert, clock = FrameReader(container, stream), ToTensor(stream), _Clock(stream, self.sliding.fps)
        announced, errors = duration_seconds(container, stream), 0
        for frame in frames:
            if self.stopped.is_set():
                return
            with self.changed:
                self.beat, self.began = time.monotonic(), True
                if frames.errors > errors:
                    self.remarks.append(f"{frames.errors - errors} damaged packets before {clock.seconds:.2f} s")
                    errors = frames.errors
            due = clock.is_due(frame)
            if clock.remark:
                self.remarks.append(clock.remark)
            if due:
                self._take(self.prepare(convert(frame)), clock.seconds)
        self.words += convert.warnings
        if announced and clock.seconds + max(1.0, 0.02 * announced) < announced:
            ended = f"{self.name_of_source} ended at {clock.seconds:.1f} s of the {announced:.1f} s that it announces"
            self.words.append(ended)
        if frames.errors > errors:
            self.words.append(f"{frames.errors - errors} damaged packets at its end")

    def _take(self, picture_CHW: Tensor, seconds: float) -> None:
        """Keep a sampled frame, and hand a window over if it is complete."""
        window, stride = self.sliding.window, self.sliding.stride
        with self.changed:
            self.ring.append((picture_CHW, seconds))
            self.sampled += 1
            if self.sampled >= window and (self.sampled - window) % stride == 0:
                self._hand_over()

    def _hand_over(self) -> None:
        """Make a window of the ring; if the one before it was not taken yet, wait for that, or leave that out."""
        while self.due and self.sliding.when_late == "wait" and not self.stopped.is_set():
            self.changed.wait(POLL)
        if self.due:
            late = self.due.popleft()
            self.skipped += late.skipped + 1
            self.remarks[:0] = late.remarks
        kept = list(self.ring)
        kept += kept[-1:] * (self.sliding.window - len(kept))
        if self.sampled < self.sliding.window:
            short = f"the source has {self.sampled} frames at {self.sliding.fps:g} a second and the window needs"
            self.remarks.append(f"{short} {self.sliding.window}: the last is repeated")
        pictures, times = zip(*kept, strict=True)
        self.due.append(Window(pictures, times, self.skipped, tuple(self.remarks)))
        self.remarks, self.skipped, self.covered = [], 0, self.sampled
        self.changed.notify_all()


class _Clock:
    """Seconds from a source's first frame, which never go back, and which frames are due at a rate."""

    def __init__(self, stream: Any, fps: float) -> None:
        self.fps, self.rate = fps, float(stream.average_rate or stream.guessed_rate or 25)
        self.seconds, self.offset, self.number, self.taken = 0.0, 0.0, -1, -1
        self.first: float | None = None
        self.remark = ""
        """What is wrong with the last frame's time."""

    def is_due(self, frame: Any) -> bool:
        """Move to the next frame, and return whether it is the first in its part of a second."""
        self.number += 1
        self.remark = ""
        stamp = self.number / self.rate if frame.time is None else float(frame.time)
        self.first = stamp if self.first is None else self.first
        seconds = stamp - self.first + self.offset
        if self.number and not 0 <= seconds - self.seconds <= JUMP:
            self.remark = f"time stamps jump by {seconds - self.seconds:+.2f} s at {self.seconds:.2f} s"
        if seconds < self.seconds:  # a source that started again
            self.offset += self.seconds + 1 / self.rate - seconds
            seconds = self.seconds + 1 / self.rate
        self.seconds = seconds
        part = int(seconds * self.fps + 1e-6)
        due, self.taken = part > self.taken, max(part, self.taken)
        return due
