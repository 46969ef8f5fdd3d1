"""Paths of what moves most."""

import numpy as np
import pytest
import torch

from sttm.backbones.base import Grid
from sttm.merging.tokens import MergeMap
from sttm.visual import paths, regions
from tests.helpers import random_map

GRID = Grid(frames=4, height=3, width=5, prefix=0)
BLACK = torch.zeros(8, 3, 30, 50, dtype=torch.uint8)


def found(merge_map: MergeMap, frames_TCHW: torch.Tensor = BLACK) -> np.ndarray:
    (stage,) = regions.stages([merge_map], GRID, frames_TCHW)
    return paths.in_tokens(paths.paths(merge_map, stage, GRID)[0], GRID)


def test_a_path_starts_where_its_slot_is():
    """The merger gives paths relative to the centroid of the slot; this slot moves right by one token a frame."""
    trajectory, position = torch.zeros(1, 12, 4, 2), torch.zeros(1, 12, 3)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.5  # five tokens across span [-1, 1]: one is half a unit
    position[0, 3] = torch.tensor([0.0, 1.0, -1.0])
    (path_T2, *others) = found(random_map(trajectory=trajectory, position=position))
    assert not others and path_T2 == pytest.approx(np.array([[2.5, x + 0.5] for x in range(4)]))


def test_a_path_reaches_far_and_does_not_leap():
    """Not the slot that leaps between two places that look alike, nor a second slot on the same object."""
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.3
    trajectory[0, 4, :, 1] = torch.arange(4) * 0.29
    trajectory[0, 5, :, 0] = torch.tensor([0.0, 2, 0, 2])
    path_KT2 = paths.farthest(trajectory[0].double().numpy())
    assert path_KT2.shape == (1, 4, 2) and path_KT2[0, :, 1] == pytest.approx(np.arange(4) * 0.3)


def test_where_a_merger_computes_none_the_centre_of_a_region_is_its_path():
    frames_TCHW = torch.full((4, 3, 24, 40), 40, dtype=torch.uint8)
    slot_THW = np.zeros((4, 3, 5), np.int64)
    for t in range(4):
        frames_TCHW[t, :, 8:16, 8 * t : 8 * t + 16] = 255
        slot_THW[t, 1, t : t + 2] = 1
        slot_THW[t] += 2 * t
    merge_map = MergeMap(
        torch.from_numpy(slot_THW).reshape(1, -1), torch.ones(1, 8), torch.zeros(1, 8, 3), ((4, 15), (4, 2))
    )
    (path_T2, *others) = found(merge_map, frames_TCHW)
    assert not others and path_T2 == pytest.approx(np.array([[1.5, t + 1.0] for t in range(4)]))
    assert "linked" in paths.paths(merge_map, regions.stages([merge_map], GRID, frames_TCHW)[0], GRID)[1]
