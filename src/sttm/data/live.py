"""Open sources without an end: long files, standard input, pipes, cameras and network streams."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import av

from sttm.data.video.claims import MAX_PIXELS
from sttm.data.video.container import FORMATS, open_stream, pick_stream
from sttm.errors import SttmError, quoted

#: What a network source may be opened with; "file" is not among them, nor are playlists among the formats.
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "tcp", "srt", "http", "https")
_PROTOCOLS = ",".join((*SCHEMES, "tls"))
#: Seconds between two looks at what else happens, while nothing comes.
POLL = 0.2

FrameSource = str | os.PathLike[str] | Any
"""A path, a URL, "-" for standard input, a camera's number, or an open binary file."""


def is_live(source: FrameSource) -> bool:
    """Return whether a source goes on by itself, whether it is read or not: a camera or a network stream."""
    return isinstance(source, str | os.PathLike) and bool(_scheme(source) or _camera(source))


@contextmanager
def opened(source: FrameSource, timeout: float, stopped: Event) -> Iterator[tuple[Any, Any]]:
    """Open a source, and yield its container and its video stream."""
    with ExitStack() as closed:
        name, device, options = name_of(source), None, {"protocol_whitelist": "none"}
        target, advice = source, "send MPEG-TS, Matroska, or mp4 in fragments, which can be read from their start"
        if not isinstance(source, str | os.PathLike):
            pass
        elif os.fspath(source) == "-":
            target = _Pipe(sys.stdin.fileno(), stopped)
        elif camera := _camera(source):
            (target, device), options, advice = _device(camera), {}, "check that no other program uses it"
        elif scheme := _scheme(source):
            target, options = os.fspath(source), {"protocol_whitelist": _PROTOCOLS}
            options |= {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
            advice = "check the address, and that it is sending"
        elif _is_pipe(source):  # opened without waiting for somebody who writes
            target = _Pipe(os.open(source, os.O_RDONLY | os.O_NONBLOCK), stopped, awaited=True)
            closed.callback(os.close, target.number)
        else:
            with open_stream(os.fspath(source)) as file:
                yield file
            return
        if device is None:
            options |= {"format_whitelist": ",".join((*FORMATS, "rtsp", "rtp", "sdp"))}
        try:
            container = av.open(
                target, format=device, timeout=timeout, metadata_errors="replace", container_options=options,
                options={"max_pixels": str(MAX_PIXELS)},
            )  # fmt: skip
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SttmError(f"{name} cannot be read as a video ({reason}); {advice}") from None
        with container:
            yield container, pick_stream(name, container)


class _Pipe:
    """What comes out of a pipe, without a wait that cannot be ended."""

    def __init__(self, number: int, stopped: Event, *, awaited: bool = False) -> None:
        self.number, self.stopped, self.awaited = number, stopped, awaited

    def read(self, size: int) -> bytes:
        """Return what is there, at most `size` bytes; nothing at the end."""
        while not self.stopped.is_set():
            if sys.platform != "win32" and not select.select([self.number], [], [], POLL)[0]:
                continue
            data = os.read(self.number, size)
            if data or not self.awaited:
                self.awaited = False
                return data
            time.sleep(POLL)  # nobody writes yet
        return b""


def check_source(source: FrameSource) -> None:
    """Raise SttmError for a source that is not there, before a model is loaded for it; a file is opened later."""
    if not isinstance(source, str | os.PathLike) or os.fspath(source) == "-":
        return
    text = os.fspath(source)
    if camera := _camera(source):
        _device(camera)
    elif "://" in text and not _scheme(source):
        allowed = ", ".join(SCHEMES)
        raise SttmError(f"{quoted(text)} is no kind of stream that is read; allowed are {allowed}, and paths of files")
    elif "://" not in text and not Path(text).exists():
        raise SttmError(f"{quoted(text)} does not exist; give a video file, a camera such as 0, a URL, or - for stdin")


def name_of(source: FrameSource) -> str:
    if not isinstance(source, str | os.PathLike):
        return str(getattr(source, "name", "the source"))
    text = os.fspath(source)
    return "standard input" if text == "-" else re.sub(r"(?<=://)[^/@]*@", "", text)  # without a password


def _scheme(source: FrameSource) -> str:
    scheme, there, _ = os.fspath(source).partition("://")
    return scheme.lower() if there and scheme.lower() in SCHEMES else ""


def _camera(source: FrameSource) -> str:
    """Return the number or device of a camera, or nothing."""
    text = os.fspath(source)
    is_device = text.startswith("/dev/video")
    return text if is_device or (text.isdecimal() and len(text) < 3 and not Path(text).exists()) else ""


def _device(camera: str) -> tuple[str, str]:
    """Return what FFmpeg calls a camera, and the format that reads it; raise SttmError if there is none."""
    if sys.platform == "darwin":
        return camera, "avfoundation"
    device = Path(f"/dev/video{camera}" if camera.isdecimal() else camera)
    if device.exists():
        return str(device), "v4l2"
    there = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*"))[:8])
    advice = f"those here are {there}" if there else "none is here; connect one, or name a file or a URL"
    raise SttmError(f"there is no camera {device}; {advice}")


def _is_pipe(source: FrameSource) -> bool:
    try:
        return stat.S_ISFIFO(Path(source).stat().st_mode)
    except (OSError, ValueError):
        return False
