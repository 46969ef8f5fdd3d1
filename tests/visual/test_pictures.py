"""Pictures, token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sttm.backbones.base import Grid
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap
from sttm.synth.clips import render
from sttm.visual import pictures as show

PREPARE = Preprocess("VideoMAE", Sampling(8), 32, (32, 32), 1 / 255, 0.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
GRID = Grid(frames=4, height=3, width=5, prefix=0)


def made_map(frames_out=2, slots_out=6, seed=0, trajectory=None, meta=None) -> MergeMap:
    """Tokens that go to a random slot of their own window."""
    draw = np.random.default_rng(seed)
    window = np.arange(4) // (4 // frames_out)
    assignment = torch.from_numpy(draw.integers(0, slots_out, (1, 4, 15)) + window[:, None] * slots_out)
    total = frames_out * slots_out
    size, position = torch.ones(1, total), torch.zeros(1, total, 3)
    grid = ((4, 15), (frames_out, slots_out))
    return MergeMap(assignment.reshape(1, 60), size, position, grid, meta, trajectory)


def frames(seed=0) -> torch.Tensor:
    """Eight pictures of 30 x 50 pixels: tokens of 10 x 10, tubelets of two."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (8, 3, 30, 50), dtype=torch.uint8, generator=draw)


def test_tokens_get_the_average_colour_of_their_slot():
    pixels_TCHW, maps = frames(), [made_map()]
    maps[0].assignment[0, 7] = -1
    slot_THW = show.slots(maps, GRID)
    fused_THWC = show._fused(pixels_TCHW.permute(0, 2, 3, 1).numpy(), slot_THW)
    owner = np.repeat(np.repeat(np.repeat(slot_THW, 2, 0), 10, 1), 10, 2)  # the slot of every pixel
    for t, y, x in np.ndindex(slot_THW.shape):
        slot = slot_THW[t, y, x]
        wanted = pixels_TCHW.permute(0, 2, 3, 1).numpy()[owner == slot].mean(0) if slot >= 0 else 0
        assert np.abs(fused_THWC[t, y, x] - wanted).max() <= 0.51
    assert (fused_THWC[0, 1, 2] == 0).all()


def test_slots_follow_several_mergers():
    first, second = made_map(2, 6), made_map(2, 6, seed=1)
    onward = second.assignment[:, [0, 1, 2, 3, 4, 5, 30, 31, 32, 33, 34, 35]]
    later = MergeMap(onward, first.size, first.position, ((2, 6), (2, 6)))
    slot_THW = show.slots([first, later], GRID)
    for number, slot in enumerate(slot_THW.reshape(-1)):
        assert slot == later.assignment[0, first.assignment[0, number]]


def test_frames_that_run_one_by_one_keep_slots_of_their_own():
    slot_BN, size, position = torch.zeros(8, 15, dtype=torch.int64), torch.ones(8, 2), torch.zeros(8, 2, 3)
    alone = MergeMap(slot_BN, size, position, ((1, 15), (1, 2)))
    grid = Grid(frames=1, height=3, width=5, prefix=1, sequences=4)
    assert show.slots([alone], grid, clip=1)[:, 0, 0].tolist() == [0, 2, 4, 6]


def test_lines_part_tokens_of_different_slots_only():
    slot_HW = np.array([[0, 0, 1], [0, 2, 2]])
    image = np.asarray(show._outlined(np.zeros((2, 3, 3), np.uint8), slot_HW, (30, 20))).max(-1) > 0
    lit = {  # a point on every inner side
        "00|01": image[5, 10], "01|02": image[5, 20], "10|11": image[15, 10], "11|12": image[15, 20],
        "00/10": image[10, 5], "01/11": image[10, 15], "02/12": image[10, 25],
    }  # fmt: skip
    assert {side for side, on in lit.items() if on} == {"01|02", "10|11", "01/11", "02/12"}


def test_an_object_that_moves_leaves_its_way():
    """A slot that grew from the first token and moves right by one token a frame; others stay."""
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.5  # five tokens across span [-1, 1]: one is half a unit
    meta = torch.zeros(1, 12, dtype=torch.int64)
    first = made_map(trajectory=trajectory, meta=meta)
    (path_T2, *_) = show._paths(first, GRID, 0)
    place_T2 = show._in_pixels(path_T2[None], GRID, (50, 30))[0]
    assert place_T2 == pytest.approx(np.array([[5, 5], [15, 5], [25, 5], [35, 5]]))
    picture = show.merge_picture(frames(), [first], GRID)
    cell = (show.CELL, round(show.CELL * 30 / 50))
    step = show.CAPTION + cell[1] + show.GAP
    for t, (x, y) in enumerate(place_T2):
        across = show.GAP + t * (cell[0] + show.GAP) + round(x / 50 * cell[0])
        colour = picture.getpixel((across, 2 * step + show.CAPTION + round(y / 30 * cell[1])))
        assert colour == show.PATH_COLOURS[0]


def test_a_way_is_far_and_step_by_step():
    """Not the slot that leaps between two places that look alike, nor a second slot on the same object."""
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.3
    trajectory[0, 4, :, 1] = torch.arange(4) * 0.29
    trajectory[0, 5, :, 0] = torch.tensor([0.0, 2, 0, 2])
    meta = torch.zeros(1, 12, dtype=torch.int64)
    path_KT2 = show._paths(made_map(trajectory=trajectory, meta=meta), GRID, 0)
    assert path_KT2.shape == (1, 4, 2) and path_KT2[0, :, 1] == pytest.approx(np.arange(4) * 0.3 - 1)


def test_a_merger_that_follows_nothing_has_no_third_row():
    two, three = (show.merge_picture(frames(), [m], GRID) for m in (made_map(), moving()))
    assert two.height < three.height and two.width == three.width


def moving() -> MergeMap:
    trajectory = (torch.arange(4) * 0.3)[None, None, :, None].expand(1, 12, 4, 2)
    return made_map(trajectory=trajectory, meta=torch.zeros(1, 12, dtype=torch.int64))


def test_pictures_refuse_what_does_not_belong():
    with pytest.raises(SttmError, match="merges no tokens"):
        show.merge_picture(frames(), [], GRID)
    with pytest.raises(SttmError, match="not of 4 x 5 x 5"):
        show.merge_picture(frames(), [made_map()], Grid(4, 5, 5, 0))
    with pytest.raises(SttmError, match="7 frames"):
        show.merge_picture(frames()[:7], [made_map()], GRID)


def test_restore_undoes_preprocessing():
    made = render("motion", 0, 1, frames=8, size=32)[0]
    frames_TCHW = torch.from_numpy(made).permute(0, 3, 1, 2)
    for offset, factor in ((0.0, 1 / 255), (-1.0, 1 / 127.5)):
        prepare = replace(PREPARE, offset=offset, rescale_factor=factor)
        back = show.restore(prepare(frames_TCHW)[0], prepare)
        assert torch.equal(back, frames_TCHW)
