"""Pictures, token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sttm.backbones.base import Grid
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.synth.clips import render
from sttm.visual import pictures, regions
from sttm.visual.pictures import Drawing
from tests.helpers import random_map

PREPARE = Preprocess("VideoMAE", Sampling(8), 32, (32, 32), 1 / 255, 0.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
GRID = Grid(frames=4, height=3, width=5, prefix=0)


def frames(seed=0) -> torch.Tensor:
    """Eight pictures of 30 x 50 pixels: tokens of 10 x 10, tubelets of two."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (8, 3, 30, 50), dtype=torch.uint8, generator=draw)


def stage_of(slot_HW: list[list[int]], colour_S: list[int]) -> regions.Stage:
    slot_THW = np.array([slot_HW])
    return regions.Stage(slot_THW, np.arange(len(colour_S)), np.array(colour_S), len(colour_S))


def test_a_region_has_the_colour_of_its_palette_over_the_frame_and_a_line_around_it():
    picture = Image.new("RGB", (60, 40), (100, 100, 100))
    drawn = np.asarray(pictures.with_regions(picture, stage_of([[0, 0, 1], [2, 3, -1]], [4, 1, -1, -1]), 0))
    for (y, x), colour in {(10, 10): 4, (10, 30): 4, (10, 50): 1}.items():
        wanted = (1 - pictures.TINT) * 100 + pictures.TINT * np.array(regions.PALETTE[colour])
        assert np.abs(drawn[y, x] - wanted).max() <= 0.51
    assert (drawn[30, 10] == 100).all() and (drawn[30, 30] == 100).all()  # alone: the frame itself
    assert (drawn[25, 50] < 100).all()  # dropped: dark
    sides = {
        "0|0": (10, 20), "0|1": (10, 40), "0/2": (20, 10), "2|3": (30, 20), "3|dropped": (30, 40),
        "1/dropped": (20, 50),
    }  # fmt: skip
    lit = {name: bool((drawn[y, x] == 255).all()) for name, (y, x) in sides.items()}
    assert {name for name, on in lit.items() if on} == {"0|1", "0/2", "3|dropped", "1/dropped"}


def test_a_colourful_frame_shows_its_own_colour_where_nothing_merged():
    picture = Image.fromarray(frames()[0].permute(1, 2, 0).numpy())
    drawn = np.asarray(pictures.with_regions(picture, stage_of([[0, 1]], [-1, -1]), 0))
    assert (drawn == np.asarray(picture)).all()


def test_rows_are_the_input_then_each_merger_then_paths():
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.3
    still, moving = (
        Drawing(frames(), [random_map(trajectory=t)], GRID) for t in (torch.zeros(1, 12, 4, 2), trajectory)
    )
    two, three, headed = (
        pictures.merge_picture(still), pictures.merge_picture(moving), pictures.merge_picture(still, ["a", "b"])
    )  # fmt: skip
    step = pictures.LINE + 96 + pictures.GAP  # frames of 5 to 3 are 160 x 96
    assert two.width == three.width == 4 * (160 + pictures.GAP) + pictures.GAP
    assert three.height - two.height == step and headed.height - two.height == 2 * pictures.LINE
    first = two.crop(
        (pictures.GAP, pictures.GAP + pictures.LINE, pictures.GAP + 160, pictures.GAP + pictures.LINE + 96)
    )
    wanted = Image.fromarray(frames()[0].permute(1, 2, 0).numpy()).resize((160, 96), Image.Resampling.LANCZOS)
    assert (np.asarray(first) == np.asarray(wanted)).all()


def test_captions_say_where_and_how_many():
    drawing = Drawing(frames(), [random_map()], GRID, ["before block 3"])
    assert drawing.caption(0) == "Merger 1 of 1, before block 3: 60 tokens became 12, 20% of all"


def test_a_video_has_a_picture_for_each_frame_that_codecs_take():
    drawing = Drawing(frames(), [random_map()], GRID)
    sheets = pictures.merge_video(drawing, ["one line"])
    assert len(sheets) == 8 and len({sheet.size for sheet in sheets}) == 1
    assert all(length % 2 == 0 for length in sheets[0].size)
    assert sheets[0].tobytes() != sheets[1].tobytes()


def test_a_dot_is_at_the_end_of_its_path():
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.4 - 0.6
    drawing = Drawing(frames(), [random_map(trajectory=trajectory)], GRID)
    path_T2 = drawing.paths[0][0]
    for t, (y, x) in enumerate(path_T2):
        drawn = pictures._with_paths(Image.new("RGB", (500, 300)), drawing, t)
        assert np.asarray(drawn)[round(y * 100), round(x * 100) - 4].min() > 240  # the first colour is white
    assert path_T2[:, 1] == pytest.approx(np.arange(4) * 0.8 + 1.3)


def test_restore_undoes_preprocessing():
    made = render("motion", 0, 1, frames=8, size=32)[0]
    frames_TCHW = torch.from_numpy(made).permute(0, 3, 1, 2)
    for offset, factor in ((0.0, 1 / 255), (-1.0, 1 / 127.5)):
        prepare = replace(PREPARE, offset=offset, rescale_factor=factor)
        back = pictures.restore(prepare(frames_TCHW)[0], prepare)
        assert torch.equal(back, frames_TCHW)
