"""From a video file to clips: read its timeline, choose frames, decode no further than they need.

`container` opens the file, `timeline` reads its packets, `sampling` chooses frames, `decode` makes them pixels.

Legend: T frames of a clip, C = 3 colours (red, green, blue), H height, W width, V temporal views of one file,
K pictures made of each frame.
"""

from dataclasses import dataclass, replace

import av
import numpy as np
import torch
from torch import Tensor

from sttm.data.video.cache import VideoCache
from sttm.data.video.container import FileLike, duration_seconds, no_frames, open_stream
from sttm.data.video.decode import DecodedFrames, FrameReader, Prepare, decode, orientation
from sttm.data.video.sampling import Sampling, sample_indices
from sttm.data.video.timeline import Timeline, display_times, read_timeline
from sttm.errors import SttmError

__all__ = ["Clip", "Sampling", "VideoInfo", "probe", "read"]


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself, with sizes as its first frame shows them."""

    path: str
    width: int
    """Pixels as shown, that is after rotation."""
    height: int
    num_frames: int | None
    """Announced or, where the header has no count, duration times fps; None where nothing is known."""
    fps: float | None = None
    duration_seconds: float | None = None


@dataclass(repr=False)
class Clip:
    """Decoded frames of one temporal view of one file, and their positions in it."""

    frames_TCHW: Tensor
    """uint8 RGB, turned upright; one frame repeated may be one piece of memory."""
    indices: tuple[int, ...]
    """Index of each frame in the file, from 0; if a chosen one is damaged, among the frames that the file yields."""
    timestamps: tuple[float, ...]
    """Seconds from the video's first frame to each of these."""
    path: str
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.frames_TCHW.shape)
        assert self.frames_TCHW.dtype == torch.uint8, self.frames_TCHW.dtype
        assert len(shape) == 4 and shape[1] == 3 and min(shape) > 0, shape
        assert shape[0] == len(self.indices) == len(self.timestamps), (shape, self.indices, self.timestamps)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.frames_TCHW.shape))
        return f"Clip({self.path!r}, frames_TCHW={shape}, indices={self.indices}, warnings={self.warnings})"


def probe(file: FileLike) -> VideoInfo:
    """Read a video's header and its first frame; raise SttmError if the file is no readable video with a frame."""
    with open_stream(file) as (container, stream):
        frame = next(iter(FrameReader(container, stream)), None)
        if frame is None:
            raise no_frames(file, stream)
        quarter_turns, _ = orientation(frame)
        size = (frame.width, frame.height)
        rate = stream.average_rate or stream.guessed_rate
        seconds = duration_seconds(container, stream)
        return VideoInfo(
            path=str(file),
            width=size[quarter_turns % 2],
            height=size[1 - quarter_turns % 2],
            fps=float(rate) if rate else None,
            num_frames=stream.frames or (round(seconds * rate) if seconds and rate else None),
            duration_seconds=seconds,
        )


def read(
    file: FileLike,
    sampling: Sampling,
    *,
    rng: np.random.Generator | None = None,
    cache: VideoCache | None = None,
    prepare: Prepare | None = None,
) -> list[Clip]:
    """Decode the frames that `sampling` asks for: one Clip a temporal view.

    A video shorter than the clip repeats its last frame; a file that yields fewer frames than it announces
    is sampled over those it yields; packets that cannot be decoded are left out: the clips' `warnings` say so.
    Transparent pixels are drawn over white, as transformers' processors do; frames that differ in size from the
    stream are scaled to it.

    Args:
        rng: choose frames at random, as in training.
        cache: holds decoded videos, whole frames, so that a file is decoded only once.
        prepare: makes K pictures, uint8 KCHW, of each frame CHW as soon as it is decoded, so that large frames are
            not kept; there is then one Clip a view and picture, the pictures of a view in a row.

    Raises:
        SttmError: if the file cannot be opened, yields no frame, or is too small for so many frames of their size.
    """
    cached = cache.get(file) if cache is not None else None
    timeline = cached.timeline if cached is not None else read_timeline(file)
    errors = 0
    while True:
        indices_VT = sample_indices(timeline.times, sampling, rng)
        wanted = sorted({i for indices_T in indices_VT for i in indices_T})
        if len(wanted) > timeline.most_frames:
            few = f"{file} has too few bytes for {len(wanted)} frames of its size"
            raise SttmError(f"{few}, of which {timeline.most_frames} may be decoded; scale it down first")
        decoded = cached.select(timeline, wanted, prepare) if cached else _decode(file, timeline, wanted, prepare)
        errors = max(errors, decoded.errors)
        if len(decoded.pictures_KCHW) == len(wanted):
            break
        # A frame is missing: sample again over those that the file yields. They are fewer each time, so this ends.
        timeline = replace(timeline, times=display_times(decoded.stamps), keys=(), exact=False)
    notes = (*_damage(errors), *decoded.warnings, *_shortage(timeline), *sampling.warnings_for(len(timeline.times)))
    return [
        Clip(frames_TCHW, tuple(indices_T), timeline.seconds(indices_T), str(file), notes)
        for indices_T in indices_VT
        for frames_TCHW in stack([decoded.pictures_KCHW[i] for i in indices_T])
    ]


def _decode(file: FileLike, timeline: Timeline, wanted: list[int], prepare: Prepare | None) -> DecodedFrames:
    """Decode as `decode` does; raise SttmError for a frame that decodes but cannot be made a picture."""
    try:
        return decode(file, timeline, wanted, prepare)
    except av.FFmpegError as error:
        what = f"{file} has a frame that cannot be converted ({error.strerror})"
        raise SttmError(f"{what}; make or download it again") from None


def stack(pictures_TKCHW: list[Tensor]) -> list[Tensor]:
    """Return K tensors of T pictures; one picture that is repeated is not copied."""
    first_KCHW = pictures_TKCHW[0]
    if all(picture is first_KCHW for picture in pictures_TKCHW):
        return [picture.expand(len(pictures_TKCHW), -1, -1, -1) for picture in first_KCHW]
    return [torch.stack(pictures).contiguous() for pictures in zip(*pictures_TKCHW, strict=True)]


def _damage(errors: int) -> list[str]:
    return [f"the file is damaged: {errors} of its packets could not be decoded"] if errors else []


def _shortage(timeline: Timeline) -> list[str]:
    num_frames = len(timeline.times)
    if num_frames >= timeline.announced:
        return []
    return [f"the file announces {timeline.announced} frames but yields only {num_frames}"]
