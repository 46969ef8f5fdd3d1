"""When each frame of a file is shown, as its packets tell without any decoding."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sttm.data.video.claims import most_frames
from sttm.data.video.container import FileLike, Packets, duration_seconds, no_frames, open_stream

_EXACT_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers that state when each frame is shown


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown, in display order."""

    times: tuple[int, ...]
    """In ticks."""
    seconds_per_tick: float
    announced: int
    """Number of frames that the header, or else the packets, announce."""
    keys: tuple[int, ...] = ()
    """Indices of the key frames; empty where seeking to one may be inexact."""
    exact: bool = False
    """Whether each time belongs to one frame, so that frames are known by their times and not by their number."""
    most_frames: int = 2**31
    """Number of frames that may be decoded for one clip, by their size and that of the file."""

    def index(self, number: int, time: int | None) -> int | None:
        """Return the index of a decoded frame, by its time or else its number; None for one that is not expected."""
        return self._index_by_time.get(time) if self.exact else number

    def seconds(self, indices: list[int]) -> tuple[float, ...]:
        """Return the seconds from the first frame to each of these."""
        return tuple((self.times[index] - self.times[0]) * self.seconds_per_tick for index in indices)

    @cached_property
    def _index_by_time(self) -> dict[int | None, int]:
        return {time: index for index, time in enumerate(self.times)}


def read_timeline(path: FileLike) -> Timeline:
    """Read a file's packets without decoding them; frame counts in headers are often zero or too high.

    Raises:
        SttmError: if the file cannot be opened or has no packet of a frame.
    """
    with open_stream(path) as (container, stream):
        stamps, key_stamps, num_hidden = _read_packets(container, stream)
        if not stamps:
            raise no_frames(path, stream)
        times = display_times(stamps)
        timed = None not in stamps
        exact = timed and container.format.name in _EXACT_TIMES and len(set(times)) == len(times)
        index: dict[int | None, int] = {time: i for i, time in enumerate(times)}
        return Timeline(
            times=times,
            seconds_per_tick=float(stream.time_base) if timed else 1 / float(stream.guessed_rate or 25),
            announced=max(stream.frames - num_hidden, 0) or _announced_by_duration(container, stream, len(times)),
            keys=tuple(sorted(index[stamp] for stamp in key_stamps)) if exact else (),
            exact=exact,
            most_frames=most_frames(stream.codec_context.width, stream.codec_context.height, container.size),
        )


def display_times(stamps: list[int | None]) -> tuple[int, ...]:
    """Sort timestamps into display order; where one is missing, return the frames' numbers instead."""
    known = [stamp for stamp in stamps if stamp is not None]
    return tuple(sorted(known)) if len(known) == len(stamps) else tuple(range(len(stamps)))


def _read_packets(container: Any, stream: Any) -> tuple[list[int | None], list[int | None], int]:
    """Return the timestamps of all shown frames, those of key frames, and the number of frames never shown."""
    stamps, key_stamps, num_hidden = [], [], 0
    for packet in Packets(container, stream):
        if packet.is_discard:  # cut off by an edit list: never shown
            num_hidden += 1
        elif packet.size:  # the last packet of all is empty
            stamps.append(packet.pts if packet.pts is not None else packet.dts)
            if packet.is_keyframe:
                key_stamps.append(stamps[-1])
    return stamps, key_stamps, num_hidden


def _announced_by_duration(container: Any, stream: Any, num_packets: int) -> int:
    """Return the frames that the duration announces where far fewer packets are there, else the packets' number."""
    seconds, rate = duration_seconds(container, stream), stream.guessed_rate
    announced = round(seconds * rate) if seconds and rate and len(container.streams) == 1 else 0
    return announced if num_packets < 0.9 * announced else num_packets
