"""The paths of the few slots that move most.

Legend: T token frames, O slots or tracks, K paths that are shown, S tokens in a frame; 2 = (y, x) in [-1, 1], the
centres of the outer tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sttm.backbones.base import Grid
from sttm.merging.tokens import MergeMap, grid_positions
from sttm.visual.regions import Stage

Floats = NDArray[np.float64]

#: Paths that are shown at most.
PATHS = 3
#: Paths shorter than `STILL` are not shown, nor a second path closer than `APART`; a picture is 2 wide.
STILL, APART = 0.2, 0.4
#: Tokens of a region whose path is shown, at least.
PARTS = 2


def paths(first: MergeMap, last: Stage, grid: Grid, clip: int = 0) -> tuple[Floats, str]:
    """Return the paths [K T 2] of what moves farthest without leaps, and in words what they are.

    They are those that the first merger computes, where it is learned and follows its slots; else the centres of the
    regions of the last merger, linked as their colours are.
    """
    if first.trajectory is not None and grid.sequences == 1:
        path_OT2 = first.trajectory[clip].cpu() + first.position[clip, :, None, 1:].cpu()
        return farthest(path_OT2.double().numpy()), "where the first merger finds the slots that move farthest"
    return farthest(centres(last)), "centres of the regions that move farthest, linked by place, colour and area"


def centres(stage: Stage) -> Floats:
    """Return the centre of each track that has `PARTS` tokens or more in every token frame [O T 2]."""
    track_THW = stage.tracks
    frames, height, width = track_THW.shape
    count = int(track_THW.max(initial=-1)) + 1
    position_TS3 = grid_positions(1, height, width).double().numpy()
    path_OT2 = np.full((count, frames, 2), np.nan)
    for t, track_HW in enumerate(track_THW):
        track_S, kept = track_HW.reshape(-1), track_HW.reshape(-1) >= 0
        area_O = np.bincount(track_S[kept], minlength=count)
        for axis in (0, 1):
            sum_O = np.bincount(track_S[kept], weights=position_TS3[0, kept, 1 + axis], minlength=count)
            np.divide(sum_O, area_O, out=path_OT2[:, t, axis], where=area_O >= PARTS)
    return path_OT2[~np.isnan(path_OT2).any((1, 2))]


def farthest(path_OT2: Floats) -> Floats:
    """Return the few paths that reach farthest without leaps; none that lies beside another [K T 2]."""
    reach_O = np.linalg.norm(np.ptp(path_OT2, axis=1), axis=-1)
    leap_O = np.linalg.norm(np.diff(path_OT2, axis=1), axis=-1).max(1, initial=0)
    # A path that leaps between tokens that look alike follows no object.
    travel_O = reach_O - 1.5 * leap_O
    chosen: list[int] = []
    for slot in np.argsort(-travel_O, kind="stable"):
        if len(chosen) == PATHS or travel_O[slot] < STILL:
            break
        # Slots on one object have nearly the same path: it is shown once.
        if all(np.linalg.norm(path_OT2[slot] - path_OT2[other], axis=-1).mean() > APART for other in chosen):
            chosen.append(int(slot))
    return path_OT2[chosen]


def in_tokens(path_KT2: Floats, grid: Grid) -> Floats:
    """Convert (y, x) in [-1, 1] to tokens from the upper left corner of the grid."""
    return (path_KT2 + 1) / 2 * (np.array([grid.height, grid.width]) - 1) + 0.5
