"""Regions: which token belongs to which, and which keep their colour."""

import numpy as np
import pytest
import torch

from sttm.backbones.base import Grid
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap
from sttm.visual import regions
from tests.helpers import random_map as made_map

GRID = Grid(frames=4, height=3, width=5, prefix=0)


def moving_square() -> tuple[torch.Tensor, list[MergeMap]]:
    """A bright square that moves right by a token a frame over two grounds, each window numbering its slots anew.

    The first merger has windows of one frame, and slots for the square and either ground; the second joins the grounds.
    """
    frames_TCHW = torch.full((4, 3, 24, 40), 40, dtype=torch.uint8)
    frames_TCHW[..., 20:] = 120
    slot_THW = np.zeros((4, 3, 5), np.int64)
    slot_THW[:, :, 2:] = 1
    for t in range(4):
        frames_TCHW[t, :, 8:16, 8 * t : 8 * t + 16] = 255
        slot_THW[t, 1, t : t + 2] = 2
    turned = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]])  # the number of each slot in each frame
    first = np.stack([turned[t][slot_THW[t]] + 3 * t for t in range(4)])
    joined = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 0]])
    second = np.empty((4, 3), np.int64)
    for t in range(4):
        second[t, turned[t]] = joined[t] + 2 * t
    return frames_TCHW, [
        MergeMap(torch.from_numpy(where).reshape(1, -1), torch.ones(1, out), torch.zeros(1, out, 3), grid)
        for where, out, grid in ((first, 12, ((4, 15), (4, 3))), (second, 8, ((4, 3), (4, 2))))
    ]


def test_one_object_has_one_colour_through_time_and_mergers():
    frames_TCHW, maps = moving_square()
    stages = regions.stages(maps, GRID, frames_TCHW)
    colours = set()
    for stage in stages:
        square = np.concatenate([stage.colours[t, 1, t : t + 2] for t in range(4)])
        assert len(set(square)) == 1
        colours |= set(square)
        for t in range(4):  # and no neighbour has it
            assert (stage.colours[t] == square[0]).sum() == 2
        assert len({int(stage.tracks[t, 1, t]) for t in range(4)}) == 1
    assert len(colours) == 1 and [stage.slots for stage in stages] == [12, 8]
    # the ground on the right keeps its colour too, where the square is not
    assert len(set(stages[0].colours[:3, 0, 4])) == 1


def test_regions_that_look_different_are_not_linked():
    frames_TCHW, maps = moving_square()
    frames_TCHW[2:, :] = 255 - frames_TCHW[2:]
    (stage, _) = regions.stages(maps, GRID, frames_TCHW)
    assert not set(stage.tracks[1].reshape(-1)) & set(stage.tracks[2].reshape(-1))


def test_a_token_alone_in_its_slot_has_no_colour_and_a_dropped_one_no_track():
    one = made_map()
    one.assignment[0, 7] = -1
    (stage,) = regions.stages([one], GRID, torch.zeros(8, 3, 30, 50, dtype=torch.uint8))
    assert stage.slot_THW[0, 1, 2] == stage.tracks[0, 1, 2] == stage.colours[0, 1, 2] == -1
    counts = np.bincount(stage.slot_THW[stage.slot_THW >= 0])
    for slot, colour in zip(stage.slot_THW.reshape(-1), stage.colours.reshape(-1), strict=True):
        assert (colour >= 0) == (slot >= 0 and counts[slot] > 1)


def test_colours_are_far_apart_for_colour_blind_eyes():
    """By the matrices of Machado et al. (2009) for full deuteranopia and protanopia, and in lightness."""
    sights = {
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    for matrix in sights.values():
        seen = (np.array(regions.PALETTE) / 255) ** 2.2 @ np.array(matrix).T
        seen = np.clip(seen, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(len(seen), dtype=bool)].min() > 0.1


def test_slots_follow_several_mergers():
    first, second = made_map(2, 6), made_map(2, 6, seed=1)
    onward = second.assignment[:, [0, 1, 2, 3, 4, 5, 30, 31, 32, 33, 34, 35]]
    later = MergeMap(onward, first.size, first.position, ((2, 6), (2, 6)))
    slot_THW = regions.slots([first, later], GRID)
    for number, slot in enumerate(slot_THW.reshape(-1)):
        assert slot == later.assignment[0, first.assignment[0, number]]


def test_frames_that_run_one_by_one_keep_slots_of_their_own():
    slot_BN, size, position = torch.zeros(8, 15, dtype=torch.int64), torch.ones(8, 2), torch.zeros(8, 2, 3)
    alone = MergeMap(slot_BN, size, position, ((1, 15), (1, 2)))
    grid = Grid(frames=1, height=3, width=5, prefix=1, sequences=4)
    assert regions.slots([alone], grid, clip=1)[:, 0, 0].tolist() == [0, 2, 4, 6]


def test_what_does_not_belong_is_refused():
    frames_TCHW = torch.zeros(8, 3, 30, 50, dtype=torch.uint8)
    with pytest.raises(SttmError, match="merges no tokens"):
        regions.stages([], GRID, frames_TCHW)
    with pytest.raises(SttmError, match="not of 4 x 5 x 5"):
        regions.stages([made_map()], Grid(4, 5, 5, 0), frames_TCHW)
    with pytest.raises(SttmError, match="7 frames"):
        regions.stages([made_map()], GRID, frames_TCHW[:7])
