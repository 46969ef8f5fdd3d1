"""Decode the wanted frames of a file with PyAV: in order, or from key frame to key frame.

Legend: K pictures made of a frame, C = 3 colours (red, green, blue), H height, W width.
"""

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from sttm.data.video.container import FileLike, Packets, no_frames, open_stream
from sttm.data.video.timeline import Timeline

Prepare = Callable[[Tensor], Tensor]
"""Turns a frame, uint8 CHW, into the pictures KCHW to keep of it, such as its crops."""

_BLOCK = 16  # rows that are drawn over white at once: few enough for a cache
#: A frame and its side data refer to each other in PyAV: frames of more pixels (50 MB and more) are collected at once.
LARGE = 2**24


@dataclass
class DecodedFrames:
    """The wanted frames of a file, as far as it yields them."""

    pictures_KCHW: dict[int, Tensor] = field(default_factory=dict)
    """uint8, by index of the frame; K is 1 where frames are kept as they are."""
    stamps: list[int | None] = field(default_factory=list)
    """When each decoded frame is shown, in ticks; of all that the file yields if a wanted one is missing."""
    errors: int = 0
    """Damaged packets that could not be decoded."""
    warnings: tuple[str, ...] = ()
    pixels: int = 0
    """Of a frame as it is stored."""


class FrameReader:
    """The frames of a stream in display order, also those behind packets that cannot be decoded."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._packets, self._damaged = Packets(container, stream), 0

    @property
    def errors(self) -> int:
        """Damaged packets so far."""
        return self._packets.errors + self._damaged

    def __iter__(self) -> Iterator[Any]:
        for packet in self._packets:
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._damaged += 1
                continue
            yield from frames


def decode(path: FileLike, timeline: Timeline, wanted: list[int], prepare: Prepare | None = None) -> DecodedFrames:
    """Decode the frames at the sorted indices `wanted`, seeking between key frames where that is exact and shorter.

    Args:
        prepare: applied to each wanted frame at once, so that only its result is kept.

    Raises:
        SttmError: if the file cannot be opened or yields no frame at all.
    """
    prepare = prepare or _whole
    decoded = _decode_by_seeking(path, timeline, wanted, prepare)
    decoded = decoded or decode_in_order(path, timeline, wanted, prepare)
    if decoded.pixels > LARGE:
        gc.collect()
    return decoded


def pixels_of(stream: Any) -> int:
    """Return the pixels of a frame as it is stored."""
    return int(stream.codec_context.width * stream.codec_context.height)


def orientation(frame: Any) -> tuple[int, bool]:
    """Read the display matrix: quarter turns counter-clockwise, and whether to mirror left and right before them.

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


def _whole(frame_CHW: Tensor) -> Tensor:
    return frame_CHW[None]


def decode_in_order(path: FileLike, timeline: Timeline, wanted: list[int], prepare: Prepare = _whole) -> DecodedFrames:
    """Decode from the start to the last wanted frame, or to the end where one is missing; see `decode`."""
    with open_stream(path) as (container, stream):
        frames, convert, decoded = FrameReader(container, stream), ToTensor(stream), DecodedFrames()
        remaining = set(wanted)
        for number, frame in enumerate(frames):
            decoded.stamps.append(frame.pts)
            index = timeline.index(number, frame.pts)
            if index in remaining:
                decoded.pictures_KCHW[index] = prepare(convert(frame))
                remaining.remove(index)
                if not remaining:
                    break
        if not decoded.stamps:
            raise no_frames(path, stream)
        decoded.errors, decoded.warnings, decoded.pixels = frames.errors, convert.warnings, pixels_of(stream)
        return decoded


def _decode_by_seeking(
    path: FileLike, timeline: Timeline, wanted: list[int], prepare: Prepare = _whole
) -> DecodedFrames | None:
    """Decode from the key frame before each wanted frame; None if that is inexact or saves less than half."""
    keys, times = timeline.keys, timeline.times
    if not keys or keys[0] > wanted[0]:
        return None
    groups = [
        (keys[k], {times[i]: i for i in members})
        for k, members in groupby(wanted, key=lambda i: bisect_right(keys, i) - 1)
    ]
    if 2 * sum(max(group.values()) - key + 1 for key, group in groups) > wanted[-1] + 1:
        return None
    with open_stream(path) as (container, stream):
        convert, decoded = ToTensor(stream), DecodedFrames()
        for key, group in groups:
            container.seek(times[key], stream=stream)
            frames, last = FrameReader(container, stream), max(group)
            for frame in frames:
                if frame.pts in group and not frame.is_corrupt:
                    decoded.pictures_KCHW[group.pop(frame.pts)] = prepare(convert(frame))
                if frame.pts is None or frame.pts >= last:
                    break
            if group or frames.errors:  # the seek missed its frame, or the file is damaged there
                return None
        decoded.warnings, decoded.pixels = convert.warnings, pixels_of(stream)
        return decoded


class ToTensor:
    """Convert frames to upright RGB tensors of one size and orientation."""

    def __init__(self, stream: Any) -> None:
        self.size = (stream.width, stream.height)
        self.orientation: tuple[int, bool] | None = None
        self.warnings: tuple[str, ...] = ()

    def __call__(self, frame: Any) -> Tensor:
        """Return a frame's pixels as uint8 CHW."""
        width, height = self.size
        if (frame.width, frame.height) != self.size:
            self.warnings = (f"the size of the frames changes: all are scaled to {width}x{height}",)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        # GIF decodes to bgra: the order of the colours changes as it is drawn, without a copy of the frame.
        swapped = frame.format.name == "bgra" and (frame.width, frame.height) == self.size
        if not swapped:
            frame = frame.reformat(width, height, "rgba" if has_alpha else "rgb24", threads=1)
        image_HWC = _pixels(frame)
        if has_alpha:
            image_HWC = _over_white(image_HWC, swapped=swapped)
        self.orientation = self.orientation or orientation(frame)
        quarter_turns, mirrored = self.orientation
        image_HWC = np.rot90(image_HWC[:, ::-1] if mirrored else image_HWC, quarter_turns)
        # What was drawn over white is ours; other pixels are still those of the frame, which the decoder may use again.
        owned_HWC = np.array(image_HWC, copy=None if has_alpha else True, order="C")
        return torch.from_numpy(owned_HWC).permute(2, 0, 1)


def _pixels(frame: Any) -> np.ndarray:
    """Return a packed frame's pixels as HWC, which are those of the frame itself and not a copy."""
    (plane,) = frame.planes
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height]
    pixel_bytes = len(frame.format.components)
    return rows[:, : frame.width * pixel_bytes].reshape(frame.height, frame.width, pixel_bytes)


def _over_white(image_HWC: np.ndarray, swapped: bool = False) -> np.ndarray:
    """Draw RGBA pixels, or BGRA ones if `swapped`, over white.

    It goes by blocks of rows, as 16 bits a level take much memory, and blends none that are opaque.
    """
    drawn_HWC = np.empty((*image_HWC.shape[:2], 3), np.uint8)
    for start in range(0, len(image_HWC), _BLOCK):
        block, drawn = image_HWC[start : start + _BLOCK], drawn_HWC[start : start + _BLOCK]
        colours, alpha = block[..., 2::-1] if swapped else block[..., :3], block[..., 3:]
        if alpha.min() == 255:
            drawn[:] = colours
            continue
        # 255 * white + alpha * (colour - white), over 255 and rounded, which this does without a division.
        blended = colours.astype(np.uint16)
        blended *= alpha
        blended += np.multiply(255 - alpha, 255, dtype=np.uint16)
        blended += 128
        blended += blended >> 8
        blended >>= 8
        drawn[:] = blended
    return drawn_HWC
