"""Decode the wanted frames of a file with PyAV: in order, or from key frame to key frame.

Legend: C = 3 colours (red, green, blue), H height, W width.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from sttm.data.video.container import FileLike, no_frames, open_stream
from sttm.data.video.timeline import Timeline, display_times


@dataclass
class DecodedFrames:
    """The wanted frames of a file, as far as it yields them."""

    frames_CHW: dict[int, Tensor] = field(default_factory=dict)
    """uint8, by index."""
    times: tuple[int, ...] | None = None
    """Set only if the file ended early: when each frame that it does yield is shown, in ticks."""
    warnings: tuple[str, ...] = ()


def decode(path: FileLike, timeline: Timeline, wanted: list[int]) -> DecodedFrames:
    """Decode the frames at the sorted indices `wanted`, seeking between key frames where that is exact and shorter.

    Raises:
        SttmError: if the file cannot be opened or yields no frame at all.
    """
    return _decode_by_seeking(path, timeline, wanted) or _decode_in_order(path, wanted)


def frames_in_order(container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames until the stream ends or breaks."""
    try:
        yield from container.decode(stream)
    except av.FFmpegError:
        return


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


def _decode_in_order(path: FileLike, wanted: list[int]) -> DecodedFrames:
    """Decode from the start to the last wanted frame."""
    with open_stream(path) as (container, stream):
        convert, remaining = _ToTensor(stream), set(wanted)
        decoded, stamps = DecodedFrames(), []
        for index, frame in enumerate(frames_in_order(container, stream)):
            stamps.append(frame.pts)
            if index in remaining:
                decoded.frames_CHW[index] = convert(frame)
                remaining.remove(index)
                if not remaining:
                    break
        if not stamps:
            raise no_frames(path, stream)
        if remaining:
            decoded.times = display_times(stamps)
        decoded.warnings = convert.warnings
        return decoded


def _decode_by_seeking(path: FileLike, timeline: Timeline, wanted: list[int]) -> DecodedFrames | None:
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
        convert, decoded = _ToTensor(stream), DecodedFrames()
        for key, group in groups:
            container.seek(times[key], stream=stream)
            last = max(group)
            for frame in frames_in_order(container, stream):
                if frame.pts in group and not frame.is_corrupt:
                    decoded.frames_CHW[group.pop(frame.pts)] = convert(frame)
                if frame.pts is None or frame.pts >= last:
                    break
            if group:  # the seek missed its frame, or the file is damaged there
                return None
        decoded.warnings = convert.warnings
        return decoded


class _ToTensor:
    """Convert frames to upright RGB tensors of one size and orientation."""

    def __init__(self, stream: Any) -> None:
        self.size = (stream.width, stream.height)
        self.orientation: tuple[int, bool] | None = None
        self.warnings: tuple[str, ...] = ()

    def __call__(self, frame: Any) -> Tensor:
        """Copy a frame's pixels as uint8 CHW."""
        width, height = self.size
        if (frame.width, frame.height) != self.size:
            self.warnings = (f"the size of the frames changes: all are scaled to {width}x{height}",)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        pixel_format = "rgba" if has_alpha else "rgb24"
        image_HWC = frame.reformat(width, height, pixel_format, threads=1).to_ndarray()
        if has_alpha:
            alpha = image_HWC[..., 3:].astype(np.uint16)
            over_white = image_HWC[..., :3] * alpha + 255 * (255 - alpha)
            image_HWC = ((over_white + 127) // 255).astype(np.uint8)
        self.orientation = self.orientation or orientation(frame)
        quarter_turns, mirrored = self.orientation
        image_HWC = np.rot90(image_HWC[:, ::-1] if mirrored else image_HWC, quarter_turns)
        return torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)
