"""Open a video file safely: real containers only, no network, no playlist, and one sentence for each failure."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.format import formats_available

from sttm.errors import SttmError

SMALL_FRAME = 640 * 480  # pixels up to which a codec's own threads cost more than they bring
MAX_PIXELS = 2**26  # of one frame: twice 8K; a header of 35 bytes can claim any size
_TEXT_FORMATS = {"tty"}  # FFmpeg also renders a text file as a video
_PLAYLIST_FORMATS = {"hls", "concat", "dash", "imf"}  # these make FFmpeg open other files


@dataclass(frozen=True)
class OpenFile:
    """A binary file that is already open, such as the bytes of a shard's member, and its name in messages."""

    file: BinaryIO
    name: str

    def __str__(self) -> str:
        return self.name


FileLike = str | Path | OpenFile


@contextmanager
def open_stream(path: FileLike) -> Iterator[tuple[Any, Any]]:
    """Open a file, yield the container and its first video stream, and close the container after use.

    Raises:
        SttmError: if the file cannot be opened, is no video, or has frames of more than `MAX_PIXELS`.
    """
    head = _read_head(path)
    # Without "file:", a plain name such as "a:b.mp4" would be taken for a URL.
    target, protocols = (path.file, "none") if isinstance(path, OpenFile) else (f"file:{os.fspath(path)}", "file")
    options = {"protocol_whitelist": protocols, "format_whitelist": _allowed_formats()}
    try:
        container = av.open(target, metadata_errors="replace", container_options=options)
    except av.FFmpegError as error:
        raise _unreadable(path, head, error) from None
    with container:
        yield container, _video_stream(path, container)


def no_frames(path: FileLike, stream: Any) -> SttmError:
    """Return the error for a file that opens but yields no frame."""
    codec = stream.codec_context.name
    return SttmError(f"{path} yields no frame that can be decoded ({codec}); make or download it again")


def duration_seconds(container: Any, stream: Any) -> float | None:
    """Return the announced duration of the stream, or else of the file."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


@cache
def _allowed_formats() -> str:
    return ",".join(sorted(formats_available - _PLAYLIST_FORMATS))


def _video_stream(path: FileLike, container: Any) -> Any:
    """Return the first video stream that is not a cover picture, and make FFmpeg skip all others."""
    videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if container.format.name in _TEXT_FORMATS:
        raise SttmError(f"{path} is a text file, not a video; give the path of a video file")
    if not videos:
        kinds = " and ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise SttmError(f"{path} holds no video stream but {kinds}; give a file with a video stream")
    stream, context = videos[0], videos[0].codec_context
    if context is None:
        raise SttmError(f"{path} has a video codec unknown to this FFmpeg; convert it to h264 first")
    if context.width * context.height > MAX_PIXELS:
        size = f"frames of {context.width}x{context.height} pixels"
        raise SttmError(f"{path} has {size}, more than the {MAX_PIXELS:,} allowed; scale it down first")
    if context.width * context.height <= SMALL_FRAME:
        context.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def _read_head(path: FileLike) -> bytes:
    """Return a file's first bytes; refuse everything that is not a readable, non-empty file."""
    if isinstance(path, OpenFile):
        path.file.seek(0)
        head = path.file.read(512)
        path.file.seek(0)
    else:
        head = _read_head_of_path(path)
    if not head:
        raise SttmError(f"{path} is empty (0 bytes); make or download the video again")
    return head


def _read_head_of_path(path: str | Path) -> bytes:
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise SttmError(f"{path} is a folder, not a video; give the path of a video file")
        if not stat.S_ISREG(mode):
            raise SttmError(f"{path} is not a regular file; give the path of a video file")
        with Path(path).open("rb") as file:
            return file.read(512)
    except SttmError:
        raise
    except FileNotFoundError:
        raise SttmError(f"{path} does not exist; give the path of a video file") from None
    except PermissionError:
        raise SttmError(f"{path} may not be read (permission denied); allow reading it first") from None
    except (OSError, TypeError, ValueError) as error:  # too long a name, a null byte, a failing disk, no path
        name = repr(path)[:200]
        raise SttmError(f"{name} cannot be opened ({error}); give the path of a video file") from None


def _unreadable(path: FileLike, head: bytes, error: Exception) -> SttmError:
    """Return the error for a file that FFmpeg refuses, with the likeliest cause."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return SttmError(f"{path} is a web page (HTML), not a video; download the video itself")
    if start.startswith((b"#extm3u", b"ffconcat")) or b"<mpd" in start:
        return SttmError(f"{path} is a playlist, not a video; give the video files that it names")
    if head[4:8] == b"ftyp":
        return SttmError(f"{path} is an mp4 cut off before its index (moov); make or download it again")
    reason = getattr(error, "strerror", None) or error
    return SttmError(f"{path} is not a readable video ({reason}); convert it to mp4 or download it again")
