"""One video to read: a file, a folder of frames, or bytes inside a tar shard."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sttm.data.video.cache import VideoCache
from sttm.data.video.container import FileLike, OpenFile
from sttm.data.video.decode import Prepare
from sttm.data.video.frame_folder import probe_frames, read_frames
from sttm.data.video.read import Clip, Sampling, VideoInfo, probe, read
from sttm.errors import SttmError

Result = TypeVar("Result")
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)


@dataclass(frozen=True, slots=True)
class ShardMember:
    """The bytes of a video inside a tar shard."""

    file: str
    offset: int
    size: int

    def open(self) -> io.BytesIO:
        """Read the bytes into a file object; raise SttmError if the shard is gone or has become shorter."""
        try:
            with Path(self.file).open("rb") as file:
                whole = file.seek(0, os.SEEK_END) >= self.offset + self.size  # before memory is reserved for it
                file.seek(self.offset)
                data = file.read(self.size) if whole else b""
        except OSError as error:
            raise SttmError(f"{self.file} cannot be read ({error.strerror}); check the disk") from error
        if len(data) < self.size:
            raise SttmError(f"{self.file} is cut off within a video; download it again")
        return io.BytesIO(data)


@dataclass(frozen=True, slots=True)
class Video:
    """What is to be read, with its label where that is known."""

    path: str
    """As it is reported: a file, a folder of frames, or shard.tar/key."""
    label: int | None = None
    """Index of the class."""
    frames: tuple[int, int | None] | None = None
    """Of a folder of frames: how many to skip, and how many there are (None: all that follow)."""
    member: ShardMember | None = None
    error: str | None = None
    """Why there is nothing to read, for an input that names no video; `read` and `probe` raise it."""

    def read(
        self,
        sampling: Sampling,
        rng: np.random.Generator | None = None,
        *,
        cache: VideoCache | None = None,
        prepare: Prepare | None = None,
    ) -> list[Clip]:
        """Decode one Clip a temporal view; raise SttmError if the video is gone or cannot be read; see `read`."""
        if self.frames is not None:
            skip, count = self.frames
            return read_frames(self.path, sampling, skip=skip, count=count, rng=rng, prepare=prepare)
        return read(self._file(), sampling, rng=rng, cache=cache, prepare=prepare)

    def probe(self) -> VideoInfo:
        """Read the header and the first frame; raise SttmError if the video is gone or cannot be read."""
        if self.frames is not None:
            return probe_frames(self.path, skip=self.frames[0], count=self.frames[1])
        return probe(self._file())

    def _file(self) -> FileLike:
        if self.error is not None:
            raise SttmError(self.error)
        return self.path if self.member is None else OpenFile(self.member.open(), self.path)


def attempt(look: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """Return what looking at a video gives, or the reason why it gives nothing: a bad video costs only itself."""
    try:
        return look(), None
    except SttmError as error:
        return None, str(error)
    except Exception as error:  # a bug of ours or of a codec is reported like a bad file
        return None, f"reading it failed unexpectedly: {type(error).__name__}: {error}"


def skipped_files(folder: str, names: Sequence[str]) -> str:
    """Return the sentence that says which files of a folder were skipped."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    count = f"{len(names)} file{'s' * (len(names) != 1)}"
    return f"{folder}: skipped {count} that cannot be read as videos: {shown}"
