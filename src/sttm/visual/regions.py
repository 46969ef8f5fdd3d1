"""Regions of merged tokens, and a colour for each that stays with its object through time and through mergers.

A slot lives in one window of frames. Slots of neighbouring frames that look alike, lie close and are about as large
are linked to a track here, for the eye: the model knows nothing of these links.

Legend: T token frames, H x W a token grid, S slots of a clip, C = 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sttm.backbones.base import Grid
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap, compose

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Colours that colour-blind people can tell apart (Okabe and Ito, 2008), those of the largest regions first.
PALETTE = ((230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66), (213, 94, 0), (0, 114, 178))
#: How far a region may move (1 is the whole picture), change its colour (1 is black to white) and its area (by this
#: factor, as a logarithm) from one token frame to the next; together, at `LINKED`, they part two objects.
MOVED, RECOLOURED, RESIZED, LINKED = 0.1, 0.1, 1.0, 6.0


@dataclass(frozen=True)
class Stage:
    """The tokens of the input grid after one merger and all before it."""

    slot_THW: Ints
    """The slot of each token; -1 for a dropped one."""
    track_S: Ints
    """The track of each slot."""
    colour_S: Ints
    """The number of each slot's colour in `PALETTE`; -1 for a slot of a single token, which is left clear."""
    slots: int
    """Tokens that go on after this merger."""

    @property
    def tracks(self) -> Ints:
        """Return the track of each token [T H W]; -1 for a dropped one."""
        return np.where(self.slot_THW < 0, -1, self.track_S[self.slot_THW])

    @property
    def colours(self) -> Ints:
        """Return the colour of each token [T H W]; -1 for a clear or dropped one."""
        return np.where(self.slot_THW < 0, -1, self.colour_S[self.slot_THW])


def stages(maps: Sequence[MergeMap], grid: Grid, frames_TCHW: Tensor, clip: int = 0) -> list[Stage]:
    """Return one Stage a merger, for one clip of a traced forward.

    Args:
        maps: what `sttm.trace` collected in one forward.
        grid: the token grid of the model, before merging.
        frames_TCHW: the frames that the model saw, uint8.
        clip: the index of the frames' clip in the batch of that forward.

    Raises:
        SttmError: if there are no maps, or maps or frames of another grid.
    """
    if not maps:
        raise SttmError("there is nothing to show: this model merges no tokens; apply a compute below 1")
    slots_THW = [slots(list(maps[: number + 1]), grid, clip) for number in range(len(maps))]
    if len(frames_TCHW) % len(slots_THW[0]):
        wrong = f"{len(frames_TCHW)} frames are not those of {len(slots_THW[0])} token frames"
        raise SttmError(f"{wrong}; give the frames that the model saw")
    colour_THWC = token_colours(frames_TCHW, (len(slots_THW[0]), grid.height, grid.width))
    tracks = [track(slot_THW, colour_THWC) for slot_THW in slots_THW]
    objects = list(_through_mergers(slots_THW, tracks))
    shades = _colours(slots_THW, objects)
    counts = [merge_map.grid[1][0] * merge_map.grid[1][1] * grid.sequences for merge_map in maps]
    return [
        Stage(slot_THW, track_S, np.where(_sizes(slot_THW) > 1, shades[object_S], -1), count)
        for slot_THW, track_S, object_S, count in zip(slots_THW, tracks, objects, counts, strict=True)
    ]


def slots(maps: list[MergeMap], grid: Grid, clip: int = 0) -> Ints:
    """Return the final slot of every token of the input grid [T H W]; -1 where it was dropped.

    Raises:
        SttmError: if the maps are of another grid.
    """
    whole = compose(maps)
    (frames, tokens), (frames_out, tokens_out) = whole.grid
    if tokens != grid.tokens or frames != grid.frames:
        wrong = f"{frames} x {tokens} tokens and not of {grid.frames} x {grid.height} x {grid.width}"
        raise SttmError(f"the maps are of {wrong}; give the grid of the model that was traced")
    # A family that runs its frames one by one has a row of the batch for each of them.
    rows_RN = whole.assignment[clip * grid.sequences : (clip + 1) * grid.sequences].cpu()
    first_R1 = torch.arange(len(rows_RN))[:, None] * frames_out * tokens_out
    slot_RN = torch.where(rows_RN < 0, -1, rows_RN + first_R1)
    return slot_RN.reshape(-1, grid.height, grid.width).numpy()


def token_colours(frames_TCHW: Tensor, grid: tuple[int, int, int]) -> Floats:
    """Return the mean colour of the pixels of each token [T H W C], from 0 to 1."""
    clip_1CTHW = frames_TCHW.permute(1, 0, 2, 3)[None].float().cpu() / 255
    mean_CTHW = torch.nn.functional.adaptive_avg_pool3d(clip_1CTHW, grid)[0]
    return mean_CTHW.permute(1, 2, 3, 0).double().numpy()


def track(slot_THW: Ints, colour_THWC: Floats) -> Ints:
    """Return the track of each slot [S]: one that appears takes over the most similar track that ends before it.

    Slots are similar by place, mean colour and area in the two frames; each track is taken over once.
    """
    track_S = np.full(int(slot_THW.max(initial=-1)) + 1, -1)
    tracks, before = 0, np.empty(0, np.int64)
    looks_before: Floats = np.empty((0, 6))
    for slot_HW, colour_HWC in zip(slot_THW, colour_THWC, strict=True):
        here, looks = _looks(slot_HW, colour_HWC)
        new, ended = np.flatnonzero(track_S[here] < 0), np.flatnonzero(~np.isin(before, here))
        unlike = ((looks[new, None] - looks_before[None, ended]) ** 2).sum(-1)
        for row, column in _closest(unlike, LINKED):
            track_S[here[new[row]]] = track_S[before[ended[column]]]
        for slot in here[track_S[here] < 0]:
            track_S[slot], tracks = tracks, tracks + 1
        before, looks_before = here, looks
    return track_S


def _looks(slot_HW: Ints, colour_HWC: Floats) -> tuple[Ints, Floats]:
    """Return the slots of a token frame, and where each is, what colour and how large, in units of a link."""
    here, number = np.unique(slot_HW, return_inverse=True)
    area = np.bincount(number.reshape(-1)).astype(float)
    y, x = (np.indices(slot_HW.shape) + 0.5) / np.array(slot_HW.shape)[:, None, None]
    columns = [y / MOVED, x / MOVED, *np.moveaxis(colour_HWC, -1, 0) / RECOLOURED]
    means = [np.bincount(number.reshape(-1), weights=column.reshape(-1)) / area for column in columns]
    kept = here >= 0
    return here[kept], np.stack([*means, np.log(area) / RESIZED], axis=1)[kept]


def _closest(unlike: Floats, most: float) -> Iterator[tuple[int, int]]:
    """Yield pairs of a row and a column, the least unlike first; each row and column once, none above `most`."""
    rows, columns = set[int](), set[int]()
    for flat in np.argsort(unlike, axis=None, kind="stable"):
        row, column = divmod(int(flat), unlike.shape[1])
        if unlike[row, column] > most:
            return
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            yield row, column


def _through_mergers(slots_THW: Sequence[Ints], tracks: Sequence[Ints]) -> Iterator[Ints]:
    """Yield the object of each slot [S], merger by merger: that of the largest part that has it, each object once."""
    before_THW, objects = np.empty(0, np.int64), 0
    for slot_THW, track_S in zip(slots_THW, tracks, strict=True):
        track_THW = np.where(slot_THW < 0, -1, track_S[slot_THW])
        object_K = np.full(int(track_S.max(initial=-1)) + 1, -1)
        if before_THW.size:
            pairs, shared = np.unique(np.stack((track_THW, before_THW)).reshape(2, -1), axis=1, return_counts=True)
            taken = set[int]()
            for number in np.argsort(-shared, kind="stable"):
                one, other = (int(value) for value in pairs[:, number])
                if one >= 0 and other >= 0 and object_K[one] < 0 and other not in taken:
                    object_K[one] = other
                    taken.add(other)
        for new in np.flatnonzero(object_K < 0):
            object_K[new], objects = objects, objects + 1
        before_THW = np.where(track_THW < 0, -1, object_K[track_THW])
        yield object_K[track_S]


def _colours(slots_THW: Sequence[Ints], objects: Sequence[Ints]) -> Ints:
    """Return the colour of each object: the largest choose first, the one that touches theirs least."""
    grids = [np.where(s_THW < 0, -1, o_S[s_THW]) for s_THW, o_S in zip(slots_THW, objects, strict=True)]
    count = max(int(object_THW.max(initial=-1)) for object_THW in grids) + 1
    touching: dict[int, dict[int, int]] = {number: {} for number in range(count)}
    for object_THW in grids:
        for one, other in _neighbours(object_THW):
            for a, b in ((one, other), (other, one)):
                touching[a][b] = touching[a].get(b, 0) + 1
    size = sum(np.bincount(object_THW[object_THW >= 0], minlength=count) for object_THW in grids)
    colour_O: Ints = np.full(count, -1)
    for number in np.argsort(-np.asarray(size), kind="stable"):
        touched, used = np.zeros(len(PALETTE)), np.bincount(colour_O[colour_O >= 0], minlength=len(PALETTE))
        for other, sides in touching[int(number)].items():
            if colour_O[other] >= 0:
                touched[colour_O[other]] += sides
        colour_O[number] = np.lexsort((np.arange(len(PALETTE)), used, touched))[0]
    return colour_O


def _neighbours(object_THW: Ints) -> Iterator[tuple[int, int]]:
    """Yield the objects on both sides of each border within a token frame."""
    for one, other in ((object_THW[:, 1:], object_THW[:, :-1]), (object_THW[:, :, 1:], object_THW[:, :, :-1])):
        apart = (one != other) & (one >= 0) & (other >= 0)
        yield from zip(one[apart].tolist(), other[apart].tolist(), strict=True)


def _sizes(slot_THW: Ints) -> Any:
    """Return the number of tokens of each slot [S]."""
    return np.bincount(slot_THW[slot_THW >= 0], minlength=int(slot_THW.max(initial=-1)) + 1)
