"""From a video file to a few RGB frames: look at it, choose frames, decode no further than they need.

Only `probe` and `read` touch a decoder. PyAV finds when each frame is shown by reading packets, without
decoding; the decoder then runs in order, or jumps between key frames where that is exact and far shorter, and
only the frames that are wanted become pixels.

Legend: T frames of a clip, C = 3 colours (red, green, blue), H height, W width, V temporal views of one file.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from sttm.data.video import decoders
from sttm.data.video.cache import Kept
from sttm.errors import SttmError

DECODERS = {"pyav": decoders.decode_with_pyav, "torchcodec": decoders.decode_with_torchcodec}
SAMPLING_MODES = ("uniform", "dense")


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself, sizes as its first frame shows them."""

    path: str
    width: int
    """Pixels as shown, that is after rotation."""
    height: int
    fps: float | None
    num_frames: int | None
    """Announced or, where the header has no count, duration times fps; None where nothing is known."""
    duration_seconds: float | None
    rotation: int
    """Degrees counter-clockwise that the file asks to be turned: 0, 90, 180 or 270; frames come turned."""
    codec: str
    pixel_format: str


@dataclass(frozen=True)
class Sampling:
    """Which frames to take: spread over the whole video ("uniform") or a stride apart ("dense")."""

    num_frames: int = 16
    mode: str = "uniform"
    stride: int = 1
    """Distance between dense frames; uniform sampling does not use it."""
    views: int = 1
    """Temporal views: clips taken from one video, to average predictions over."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "stride", "views"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SttmError(f"Sampling {name}={value!r} is not a whole number; give 1 or more.")
        if self.mode not in SAMPLING_MODES:
            choice = " or ".join(map(repr, SAMPLING_MODES))
            raise SttmError(f"Sampling mode={self.mode!r} is unknown; choose {choice}.")

    @property
    def reach(self) -> int:
        """Frames that a video needs so that none must be repeated."""
        return self.num_frames if self.mode == "uniform" else (self.num_frames - 1) * self.stride + 1


@dataclass(repr=False)
class Clip:
    """Frames of one temporal view, with the places they came from."""

    frames_TCHW: Tensor
    """uint8 RGB, turned upright."""
    indices: tuple[int, ...]
    """Place of each frame among all the frames that the file yields, from 0."""
    timestamps: tuple[float, ...]
    """Seconds from the video's first frame to each of these."""
    path: str
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.frames_TCHW.shape)
        assert self.frames_TCHW.dtype == torch.uint8, self.frames_TCHW.dtype
        assert len(shape) == 4 and shape[1] == 3 and min(shape) > 0, shape
        assert shape[0] == len(self.indices) == len(self.timestamps), (shape, self.indices, self.timestamps)

    @property
    def frames_decoded(self) -> int:
        """Different frames of the file in this clip: less than T where the last one is repeated."""
        return len(set(self.indices))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.frames_TCHW.shape))
        return f"Clip({self.path!r}, frames_TCHW={shape}, indices={self.indices}, warnings={self.warnings})"


def probe(path: str | Path | BinaryIO, *, name: str | None = None) -> VideoInfo:
    """Look at a video's header and its first frame; `name` is what messages call a file that is already open.

    Raises: SttmError if the file is missing, unreadable, no video, or yields no frame at all.
    """
    source = _source(path, name)
    with decoders.open_video(source) as (container, stream):
        frame = next(decoders.frames_in_order(container, stream), None)
        if frame is None:
            raise decoders.no_frames(source, stream)
        quarter_turns, _ = decoders.orientation(frame)
        size = (frame.width, frame.height)
        rate = stream.average_rate or stream.guessed_rate
        seconds = decoders.duration_seconds(container, stream)
        return VideoInfo(
            path=str(source),
            width=size[quarter_turns % 2],
            height=size[1 - quarter_turns % 2],
            fps=float(rate) if rate else None,
            num_frames=stream.frames or (round(seconds * rate) if seconds and rate else None),
            duration_seconds=seconds,
            rotation=90 * quarter_turns,
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
        )


def read(
    path: str | Path | BinaryIO,
    sampling: Sampling,
    *,
    decoder: str = "pyav",
    name: str | None = None,
    draw: np.random.Generator | None = None,
    kept: Kept | None = None,
) -> list[Clip]:
    """Decode the frames that `sampling` asks for: one Clip a temporal view.

    Of a binary file that is already open, such as a member of an archive, `name` is what messages call it. With
    `draw` the frames are chosen at random, as in training. `kept` saves decoding the same file again and again.

    A video shorter than the clip repeats its last frame; a file that yields fewer frames than it announces
    is sampled over those it yields: the clips' `warnings` say so. Transparent pixels are laid over white, as
    transformers' processors do; frames that differ in size from the stream are scaled to it.

    Raises: SttmError if the file yields no frame, or if the decoder is unknown or not installed.
    """
    if decoder not in DECODERS:
        raise SttmError(f"Decoder {decoder!r} is unknown; choose {' or '.join(map(repr, DECODERS))}.")
    source = _source(path, name)
    whole = kept.get(source) if kept is not None else None
    decode = whole.decode if whole is not None else DECODERS[decoder]
    timeline = whole.timeline if whole is not None else decoders.survey(source)
    while True:
        picks_VT = sample_indices(timeline.times, sampling, draw)
        decoded = decode(source, timeline, sorted({i for picks_T in picks_VT for i in picks_T}))
        if decoded.times is None:
            break
        # The file ended early: sample anew over the frames it yields. They are fewer each time, so this ends.
        timeline = replace(timeline, times=decoded.times, keys=())
    return [_make_clip(str(source), picks_T, decoded, timeline, sampling) for picks_T in picks_VT]


def sample_indices(
    times: Sequence[int], sampling: Sampling, draw: np.random.Generator | None = None
) -> list[list[int]]:
    """Choose V lists of T frame indices, given when each frame is shown (whole ticks, in order).

    Uniform: `np.linspace(0, len(times) - 1, T)` rounded down, as in transformers' video pipeline; views
    interleave. Dense: views are spread evenly, a single one is centred. Where the frame rate varies, instants
    are spread evenly in time, and the frame on screen then is chosen. A video too short ends in repeats.

    With `draw`, for training: uniform takes one frame at random out of each of T equal parts of the video, dense
    starts anywhere.
    """
    assert draw is None or sampling.views == 1, "a clip for training is one view"
    last, wanted, views = len(times) - 1, sampling.num_frames, sampling.views
    # Positions are exact fractions, numerator over denominator, on a grid of as many even steps as frames.
    if sampling.mode == "uniform" and last + 1 >= wanted and draw is not None:
        denominator = wanted
        numerators_VT = [[k * (last + 1) + int(part) for k, part in enumerate(draw.integers(last + 1, size=wanted))]]
    elif sampling.mode == "uniform" and last + 1 >= wanted:
        denominator = max(wanted * views - 1, 1)
        numerators_VT = [[(k * views + v) * last for k in range(wanted)] for v in range(views)]
    else:
        denominator, stride = 1, sampling.stride if sampling.mode == "dense" else 1
        room = max(last + 1 - sampling.reach, 0)
        starts = [room * v // (views - 1) for v in range(views)] if views > 1 else [room // 2]
        if draw is not None:
            starts = [int(draw.integers(room + 1))]
        numerators_VT = [[min(start + k * stride, last) for k in range(wanted)] for start in starts]
    if _is_constant_rate(times):
        return [[a // denominator for a in row] for row in numerators_VT]
    span = times[-1] - times[0]
    instants_VT = [[times[0] + a * span // (denominator * last) for a in row] for row in numerators_VT]
    return [[bisect_right(times, instant) - 1 for instant in row] for row in instants_VT]


def _source(path: str | Path | BinaryIO, name: str | None) -> decoders.Source:
    """A path as it is, an open file with its name."""
    if hasattr(path, "read") and hasattr(path, "seek"):
        return decoders.Member(cast(BinaryIO, path), name or str(getattr(path, "name", "the open file")))
    return path


def _is_constant_rate(times: Sequence[int]) -> bool:
    """Tell whether every frame lies within half a frame of its place on an even grid: rounded stamps do."""
    if len(times) < 3 or times[-1] == times[0]:
        return True
    places = (np.asarray(times) - times[0]) * ((len(times) - 1) / (times[-1] - times[0]))
    return bool(np.abs(places - np.arange(len(times))).max() < 0.5)


def _make_clip(
    path: str,
    picks_T: list[int],
    decoded: decoders.Decoded,
    timeline: decoders.Timeline,
    sampling: Sampling,
) -> Clip:
    num_frames, warnings = len(timeline.times), list(decoded.notes)
    if num_frames < timeline.announced:
        warnings.append(f"the file announces {timeline.announced} frames but yields only {num_frames}")
    if num_frames < sampling.reach:
        count = f"{num_frames} frame{'s' * (num_frames != 1)}"
        warnings.append(f"the video has {count} and the clip needs {sampling.reach}: the last is repeated")
    ticks = [timeline.times[i] - timeline.times[0] for i in picks_T]
    return Clip(
        frames_TCHW=torch.stack([decoded.frames_CHW[i] for i in picks_T]).contiguous(),
        indices=tuple(picks_T),
        timestamps=tuple(tick * timeline.seconds_per_tick for tick in ticks),
        path=path,
        warnings=tuple(warnings),
    )
