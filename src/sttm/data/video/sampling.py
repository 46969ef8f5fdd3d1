"""Which frames of a video make up a clip.

Legend: T frames of a clip, V temporal views of one video.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sttm.errors import SttmError

SAMPLING_MODES = ("uniform", "dense")


@dataclass(frozen=True)
class Sampling:
    """Which frames to take: over the whole video ("uniform") or a stride apart ("dense")."""

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
                raise SttmError(f"Sampling {name}={value!r} is not a whole number above 0; give 1 or more")
        if self.mode not in SAMPLING_MODES:
            choice = " or ".join(map(repr, SAMPLING_MODES))
            raise SttmError(f"Sampling mode={self.mode!r} is unknown; choose {choice}")

    @property
    def reach(self) -> int:
        """Frames that a video needs so that none must be repeated."""
        return self.num_frames if self.mode == "uniform" else (self.num_frames - 1) * self.stride + 1

    def warnings_for(self, num_frames: int) -> list[str]:
        """Return the warning for a video with too few frames, or none."""
        if num_frames >= self.reach:
            return []
        count = f"{num_frames} frame{'s' * (num_frames != 1)}"
        return [f"the video has {count} and the clip needs {self.reach}: the last is repeated"]


def sample_indices(times: Sequence[int], sampling: Sampling, rng: np.random.Generator | None = None) -> list[list[int]]:
    """Choose V lists of T frame indices.

    Uniform: `np.linspace(0, len(times) - 1, T)` rounded down, as in transformers' video pipeline; views
    interleave. Dense: views are evenly distributed, a single one is centred. Where the frame rate varies, instants
    are evenly distributed in time, and the frame shown then is chosen. A video that is too short repeats its last
    frame.

    With `rng`, for training: uniform takes one random frame out of each of T equal parts of the video, dense starts
    at a random frame.

    Args:
        times: when each frame is shown, in whole ticks and in order.
        rng: source of randomness; None for evaluation.
    """
    assert rng is None or sampling.views == 1, "a clip for training is one view"
    last, wanted, views = len(times) - 1, sampling.num_frames, sampling.views
    # Positions are exact fractions, numerator over denominator, on a grid of as many even steps as frames.
    if sampling.mode == "uniform" and last + 1 >= wanted and rng is not None:
        denominator = wanted
        numerators_VT = [[k * (last + 1) + int(part) for k, part in enumerate(rng.integers(last + 1, size=wanted))]]
    elif sampling.mode == "uniform" and last + 1 >= wanted:
        denominator = max(wanted * views - 1, 1)
        numerators_VT = [[(k * views + v) * last for k in range(wanted)] for v in range(views)]
    else:
        denominator, stride = 1, sampling.stride if sampling.mode == "dense" else 1
        room = max(last + 1 - sampling.reach, 0)
        starts = [room * v // (views - 1) for v in range(views)] if views > 1 else [room // 2]
        if rng is not None:
            starts = [int(rng.integers(room + 1))]
        numerators_VT = [[min(start + k * stride, last) for k in range(wanted)] for start in starts]
    if _is_constant_rate(times):
        return [[a // denominator for a in row] for row in numerators_VT]
    duration = times[-1] - times[0]
    instants_VT = [[times[0] + a * duration // (denominator * last) for a in row] for row in numerators_VT]
    return [[bisect_right(times, instant) - 1 for instant in row] for row in instants_VT]


def _is_constant_rate(times: Sequence[int]) -> bool:
    """Return whether every frame lies within half a frame of an even grid, as rounded timestamps do."""
    if len(times) < 3 or times[-1] == times[0]:
        return True
    positions = (np.asarray(times) - times[0]) * ((len(times) - 1) / (times[-1] - times[0]))
    return bool(np.abs(positions - np.arange(len(times))).max() < 0.5)
