"""Open a video file safely: real containers only, no network, no playlist, and one sentence for each failure."""

import codecs
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av

from sttm.data.video.claims import check_pixels, check_tables, size_of
from sttm.errors import SttmError

SMALL_FRAME = 640 * 480  # pixels up to which a codec's own threads cost more than they bring
_MAX_FAILURES = 64  # in a row, to read on in a damaged container
# FFmpeg's names of the containers and plain streams that hold a video, and of some with sound alone, for a clear error.
# None of them opens another file, as playlists (hls, concat, dash), numbered pictures (image2) and others would.
FORMATS = """
    mov matroska webm avi asf flv live_flv gif apng mpeg mpegts mpegvideo m4v h261 h263 h264 hevc vvc av1 obu ivf vc1
    mjpeg ogg mxf nut dv gxf wtv rm swf nsv nuv roq amv yuv4mpegpipe aac mp3 wav flac
""".split()


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
        SttmError: if the file cannot be opened, is no video, or announces frames that are too large or too many.
    """
    head, num_bytes = _inspect(path)
    # Without "file:", a plain name such as "a:b.mp4" would be taken for a URL.
    target, protocols = (path.file, "none") if isinstance(path, OpenFile) else (f"file:{os.fspath(path)}", "file")
    options = {"protocol_whitelist": protocols, "format_whitelist": ",".join(FORMATS)}
    try:
        container = av.open(target, metadata_errors="replace", container_options=options)
    except av.FFmpegError as error:
        raise unreadable(path, head, error) from None
    with container:
        stream = pick_stream(path, container)
        check_pixels(path, stream.codec_context.width, stream.codec_context.height, num_bytes)
        yield container, stream


class Packets:
    """The packets of a stream, also those behind places where the container is damaged."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.errors = 0
        """Times that nothing could be read, so far."""

    def __iter__(self) -> Iterator[Any]:
        failures = 0
        while failures < _MAX_FAILURES:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    yield packet
                return
            except av.FFmpegError:
                failures += 1
                self.errors += 1


def no_frames(path: FileLike, stream: Any) -> SttmError:
    """Return the error for a file that opens but yields no frame."""
    codec = stream.codec_context.name
    return SttmError(f"{path} yields no frame that can be decoded ({codec}); make or download it again")


def duration_seconds(container: Any, stream: Any) -> float | None:
    """Return the announced duration of the stream, or else of the file."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def pick_stream(path: FileLike, container: Any) -> Any:
    """Return the first video stream that is not a cover picture, and make FFmpeg skip all others."""
    videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not videos:
        kinds = " and ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise SttmError(f"{path} holds no video stream but {kinds}; give a file with a video stream")
    stream, context = videos[0], videos[0].codec_context
    if context is None:
        raise SttmError(f"{path} has a video codec unknown to this FFmpeg; convert it to h264 first")
    if context.width * context.height <= SMALL_FRAME:
        context.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def _inspect(path: FileLike) -> tuple[bytes, int]:
    """Return a file's first bytes and its size; refuse everything that is not a readable, non-empty, honest file."""
    if isinstance(path, OpenFile):
        head, num_bytes = _inspect_open(path, path.file)
        path.file.seek(0)
        return head, num_bytes
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise SttmError(f"{path} is a folder, not a video; give the path of a video file")
        if not stat.S_ISREG(mode):
            raise SttmError(f"{path} is not a regular file; give the path of a video file")
        with Path(path).open("rb") as file:
            return _inspect_open(path, file)
    except SttmError:
        raise
    except FileNotFoundError:
        raise SttmError(f"{path} does not exist; give the path of a video file") from None
    except PermissionError:
        raise SttmError(f"{path} may not be read (permission denied); allow reading it first") from None
    except (OSError, TypeError, ValueError) as error:  # too long a name, a null byte, a failing disk, no path
        name = repr(path)[:200]
        raise SttmError(f"{name} cannot be opened ({error}); give the path of a video file") from None


def _inspect_open(path: FileLike, file: BinaryIO) -> tuple[bytes, int]:
    num_bytes = size_of(file)
    if not num_bytes:
        raise SttmError(f"{path} is empty (0 bytes); make or download the video again")
    check_tables(path, file)
    file.seek(0)
    return file.read(512), num_bytes


def unreadable(path: FileLike, head: bytes, error: Exception) -> SttmError:
    """Return the error for a file that FFmpeg refuses, with the likeliest cause."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return SttmError(f"{path} is a web page (HTML), not a video; download the video itself")
    if start.startswith((b"#extm3u", b"ffconcat")) or b"<mpd" in start:
        return SttmError(f"{path} is a playlist, not a video; give the video files that it names")
    if head[4:8] == b"ftyp":
        return SttmError(f"{path} is an mp4 cut off before its index (moov); make or download it again")
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM")) or head[8:12] == b"WEBP":
        return SttmError(f"{path} is not a readable video but a picture; give the path of a video file")
    if _is_text(head):
        return SttmError(f"{path} is not a readable video but a text file; give the path of a video file")
    reason = getattr(error, "strerror", None) or error
    return SttmError(f"{path} is not a readable video ({reason}); convert it to mp4 or download it again")


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are text, perhaps cut within a character."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
