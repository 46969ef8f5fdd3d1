"""The decoders behind `video`: open a file safely, time its frames, decode the wanted ones.

Legend: C = 3 colours (red, green, blue), H height, W width.
"""

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from torch import Tensor

from sttm.errors import SttmError

_EXACT_SEEK = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers that state when each frame is shown
SMALL_FRAME = 640 * 480  # pixels up to which a codec's own threads cost more than they bring
_TEXT_FORMATS = {"tty"}  # FFmpeg would also draw a text file as a moving picture


@dataclass(frozen=True)
class Member:
    """A video that is no file of its own: an open binary file to read from, and what to call it."""

    file: BinaryIO
    name: str

    def __str__(self) -> str:
        return self.name


Source = str | Path | Member


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown, in display order, as the packets tell without any decoding."""

    times: tuple[int, ...]
    seconds_per_tick: float
    announced: int
    """Frames that the header, or failing that the packets, promise."""
    keys: tuple[int, ...] = ()
    """Indices of the key frames; empty where a jump to one cannot be trusted to be exact."""


@dataclass
class Decoded:
    """What a decoder made of the wanted frames."""

    frames_CHW: dict[int, Tensor] = field(default_factory=dict)
    """uint8, by index."""
    times: tuple[int, ...] | None = None
    """Set only if the file ended early: when each frame that it does yield is shown."""
    notes: tuple[str, ...] = ()


@contextmanager
def open_video(path: Source) -> Iterator[tuple[Any, Any]]:
    """Open a file, give the container and its first video stream, and close it after use."""
    head = _read_head(path)
    # A plain name such as "a:b.mp4" would be taken for an address. Playlists are kept off the network, and those
    # in an archive off all files.
    target, protocols = (path.file, "none") if isinstance(path, Member) else (f"file:{os.fspath(path)}", "file")
    try:
        container = av.open(target, metadata_errors="replace", container_options={"protocol_whitelist": protocols})
    except av.FFmpegError as error:
        raise _unreadable(path, head, error) from None
    with container:
        videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if container.format.name in _TEXT_FORMATS:
            raise SttmError(f"{path} is a text file, not a video; give the path of a video file.")
        if not videos:
            kinds = " and ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise SttmError(f"{path} holds no video stream but {kinds}; give a file with moving pictures.")
        if videos[0].codec_context is None:
            raise SttmError(f"{path} has a video codec unknown to this FFmpeg; convert it to h264 first.")
        context = videos[0].codec_context
        if context.width * context.height <= SMALL_FRAME:
            context.thread_count = 1
        for other in container.streams:
            if other is not videos[0]:
                other.discard = av.stream.Discard.all
        yield container, videos[0]


def survey(path: Source) -> Timeline:
    """Read a file's packets, decoding none: counts in headers are often zero or too high."""
    with open_video(path) as (container, stream):
        stamps, key_stamps, num_hidden = [], [], 0
        try:
            for packet in container.demux(stream):
                if packet.is_discard:  # trimmed off by an edit list: never shown
                    num_hidden += 1
                elif packet.size:  # the last packet of all is empty
                    stamps.append(packet.pts if packet.pts is not None else packet.dts)
                    if packet.is_keyframe:
                        key_stamps.append(stamps[-1])
        except av.FFmpegError:  # a broken tail: decoding in order will tell how far the file goes
            pass
        if not stamps:
            raise no_frames(path, stream)
        times = display_times(stamps)
        timed = None not in stamps
        seekable = timed and container.format.name in _EXACT_SEEK and len(set(times)) == len(times)
        index = {time: i for i, time in enumerate(times)}
        return Timeline(
            times=times,
            seconds_per_tick=float(stream.time_base) if timed else 1 / float(stream.guessed_rate or 25),
            announced=max(stream.frames - num_hidden, 0) or _promised(container, stream, len(times)),
            keys=tuple(sorted(index[stamp] for stamp in key_stamps)) if seekable else (),
        )


def display_times(stamps: list[int | None]) -> tuple[int, ...]:
    """Sort stamps into display order; frames without stamps are counted instead."""
    known = [stamp for stamp in stamps if stamp is not None]
    return tuple(sorted(known)) if len(known) == len(stamps) else tuple(range(len(stamps)))


def duration_seconds(container: Any, stream: Any) -> float | None:
    """Return the announced duration of the stream, or failing that of the file."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def decode_with_pyav(path: Source, timeline: Timeline, wanted: list[int]) -> Decoded:
    """Decode the frames at the sorted indices `wanted`, jumping between key frames where that pays."""
    return _decode_by_jumps(path, timeline, wanted) or _decode_in_order(path, wanted)


def decode_with_torchcodec(path: Source, timeline: Timeline, wanted: list[int]) -> Decoded:
    """Decode with torchcodec instead; alpha is dropped, and a file that breaks off is an error here."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        raise SttmError(
            "decoder='torchcodec' needs the torchcodec package and FFmpeg's libraries (apt install ffmpeg): "
            "on a CPU build of torch install torchcodec==0.13.0, as wheels from 0.14 on are linked to CUDA, "
            "or use decoder='pyav', which needs neither."
        ) from None
    try:
        target = path.file if isinstance(path, Member) else os.fspath(path)
        batch = VideoDecoder(target, seek_mode="exact").get_frames_at(indices=wanted)
    except (RuntimeError, ValueError, IndexError, StopIteration) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SttmError(f"{path} cannot be decoded by torchcodec ({reason}); use decoder='pyav'.") from None
    return Decoded(dict(zip(wanted, batch.data, strict=True)))


def frames_in_order(container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames until the stream ends or breaks."""
    try:
        yield from container.decode(stream)
    except av.FFmpegError:
        return


def orientation(frame: Any) -> tuple[int, bool]:
    """Read the display matrix: quarter turns counter-clockwise, and whether to mirror sideways before them.

    Other angles are rounded to the nearest quarter turn.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    # The point (x, y) is shown at (a x + c y, b x + d y), y pointing down: the x axis goes to (a, b).
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, dtype="<i4")[:5])
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(np.degrees(np.arctan2(-b, a)) / 90) % 4, mirrored


def no_frames(path: Source, stream: Any) -> SttmError:
    """The error for a file that opens but gives nothing."""
    codec = stream.codec_context.name
    return SttmError(f"{path} yields no frame that can be decoded ({codec}); make or download it again.")


def _decode_in_order(path: Source, wanted: list[int]) -> Decoded:
    """Decode from the start to the last wanted frame."""
    with open_video(path) as (container, stream):
        canvas, remaining = _Canvas(stream), set(wanted)
        decoded, stamps = Decoded(), []
        for index, frame in enumerate(frames_in_order(container, stream)):
            stamps.append(frame.pts)
            if index in remaining:
                decoded.frames_CHW[index] = canvas.paint(frame)
                remaining.remove(index)
                if not remaining:
                    break
        if not stamps:
            raise no_frames(path, stream)
        if remaining:
            decoded.times = display_times(stamps)
        decoded.notes = canvas.notes
        return decoded


def _decode_by_jumps(path: Source, timeline: Timeline, wanted: list[int]) -> Decoded | None:
    """Decode from the key frame before each wanted frame; None if inexact or saving less than half."""
    keys, times = timeline.keys, timeline.times
    if not keys or keys[0] > wanted[0]:
        return None
    runs = [
        (keys[k], {times[i]: i for i in members})
        for k, members in groupby(wanted, key=lambda i: bisect_right(keys, i) - 1)
    ]
    if 2 * sum(max(run.values()) - key + 1 for key, run in runs) > wanted[-1] + 1:
        return None
    with open_video(path) as (container, stream):
        canvas, decoded = _Canvas(stream), Decoded()
        for key, run in runs:
            container.seek(times[key], stream=stream)
            last = max(run)
            for frame in frames_in_order(container, stream):
                if frame.pts in run and not frame.is_corrupt:
                    decoded.frames_CHW[run.pop(frame.pts)] = canvas.paint(frame)
                if frame.pts is None or frame.pts >= last:
                    break
            if run:  # the jump went astray or met damage
                return None
        decoded.notes = canvas.notes
        return decoded


class _Canvas:
    """Turns frames into upright RGB tensors of one size and orientation."""

    def __init__(self, stream: Any) -> None:
        self.size = (stream.width, stream.height)
        self.orientation: tuple[int, bool] | None = None
        self.notes: tuple[str, ...] = ()

    def paint(self, frame: Any) -> Tensor:
        """Copy a frame's pixels as uint8 CHW."""
        width, height = self.size
        if (frame.width, frame.height) != self.size:
            self.notes = (f"the size of the frames changes: all are scaled to {width}x{height}",)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        layout = "rgba" if has_alpha else "rgb24"
        image_HWC = frame.reformat(width, height, layout, threads=1).to_ndarray()
        if has_alpha:
            alpha = image_HWC[..., 3:].astype(np.uint16)
            over_white = image_HWC[..., :3] * alpha + 255 * (255 - alpha)
            image_HWC = ((over_white + 127) // 255).astype(np.uint8)
        self.orientation = self.orientation or orientation(frame)
        quarter_turns, mirrored = self.orientation
        image_HWC = np.rot90(image_HWC[:, ::-1] if mirrored else image_HWC, quarter_turns)
        return torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)


def _promised(container: Any, stream: Any, num_packets: int) -> int:
    """Frames promised by a header without a count: its duration's worth, where that tells of a clear loss."""
    seconds, rate = duration_seconds(container, stream), stream.guessed_rate
    promised = round(seconds * rate) if seconds and rate and len(container.streams) == 1 else 0
    return promised if num_packets < 0.9 * promised else num_packets


def _read_head(path: Source) -> bytes:
    """Return a file's first bytes, having turned away everything that is not a readable, non-empty file."""
    if isinstance(path, Member):
        path.file.seek(0)
        head = path.file.read(512)
        path.file.seek(0)
    else:
        head = _read_head_of_file(path)
    if not head:
        raise SttmError(f"{path} is empty (0 bytes); make or download the video again.")
    return head


def _read_head_of_file(path: str | Path) -> bytes:
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise SttmError(f"{path} is a folder, not a video; give the path of a video file.")
        if not stat.S_ISREG(mode):
            raise SttmError(f"{path} is not a regular file; give the path of a video file.")
        with Path(path).open("rb") as file:
            return file.read(512)
    except SttmError:
        raise
    except FileNotFoundError:
        raise SttmError(f"{path} does not exist; give the path of a video file.") from None
    except PermissionError:
        raise SttmError(f"{path} may not be read (permission denied); allow reading it first.") from None
    except (OSError, TypeError, ValueError) as error:  # too long a name, a null byte, a failing disk, no path
        name = repr(path)[:200]
        raise SttmError(f"{name} cannot be opened ({error}); give the path of a video file.") from None


def _unreadable(path: Source, head: bytes, error: Exception) -> SttmError:
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return SttmError(f"{path} is a web page (HTML), not a video; download the video itself.")
    if head[4:8] == b"ftyp":
        return SttmError(f"{path} is an mp4 cut off before its index (moov); make or download it again.")
    reason = getattr(error, "strerror", None) or error
    return SttmError(f"{path} is not a readable video ({reason}); convert it to mp4 or download it again.")
