"""Augmentation: a function of the random generator alone, the same for all frames, never flipped where sides count."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sttm.config.sections import AugmentSettings
from sttm.data.transforms.augment import OPERATIONS, Augment, Operation, multi_scale_box, random_box
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.errors import SttmError

PREPROCESS = Preprocess(
    "VideoMAE", Sampling(4), 32, (32, 28), 1 / 255, 0.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


PLAIN: dict[str, Any] = {"crop": "centre", "flip": 0.0}


ALL: dict[str, Any] = {"randaugment": 3, "magnitude": 7, "erasing": 0.7}


RANDOM: list[dict[str, Any]] = [
    {},
    {"crop": "multi_scale"},
    {"crop": "centre", "flip": 0.5},
    PLAIN | {"shift": 3},
    PLAIN | {"erasing": 1.0},
    PLAIN | {"randaugment": 2},
    ALL,
]


def noise(height: int = 40, width: int = 60, num_frames: int = 4, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=random)


def augment(may_flip: bool = True, **settings) -> Augment:
    return Augment(AugmentSettings(**settings), PREPROCESS, may_flip)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_random_is_what_the_model_gets_in_evaluation():
    frames_TCHW = noise()
    assert torch.equal(augment(**PLAIN)(frames_TCHW, rng(0)), PREPROCESS(frames_TCHW)[0])
    levels_TCHW = frames_TCHW.float()
    PREPROCESS.normalise(levels_TCHW)
    assert torch.equal(levels_TCHW, frames_TCHW.float())


def test_a_shift_moves_the_centre_crop_the_same_in_all_frames() -> None:
    frames_TCHW, whole = noise(50, 60), replace(PREPROCESS, resize=None)
    shifted = Augment(AugmentSettings(**PLAIN, shift=2), whole, True)
    y, x, shifts = (50 - 32) // 2, (60 - 28) // 2, range(-2, 3)
    allowed = {
        (down, right): whole.normalise(frames_TCHW[..., y + down : y + down + 32, x + right : x + right + 28])
        for down in shifts
        for right in shifts
    }
    for shift, pixels in allowed.items():
        assert torch.equal(whole.normalise(whole.resize_and_crop(frames_TCHW, shift=shift)[0]), pixels)
    clips = [shifted(frames_TCHW, rng(seed)) for seed in range(80)]
    seen = [[shift for shift, pixels in allowed.items() if torch.equal(clip, pixels)] for clip in clips]
    assert all(len(found) == 1 for found in seen)
    assert {found[0][0] for found in seen} == {found[0][1] for found in seen} == set(shifts)
    crops_of = shifted.crops([rng(0), rng(1)])
    both_KTCHW = torch.stack([crops_of(frame_CHW) for frame_CHW in frames_TCHW], 1)
    assert torch.equal(whole.normalise(both_KTCHW), torch.stack(clips[:2]))
    with pytest.raises(SttmError, match=r"augment.shift=14 moves the crop by half of its side; give at most 13"):
        augment(**PLAIN, shift=14)


@pytest.mark.parametrize("resize_with", ["pillow", "torch"])
@pytest.mark.parametrize("size", [(1, 1), (10, 40)])
@pytest.mark.parametrize("shift", [(0, 0), (13, 13), (-13, -13)])
def test_beyond_a_frame_that_is_shifted_is_black(
    resize_with: str, size: tuple[int, int], shift: tuple[int, int]
) -> None:
    small = replace(PREPROCESS, resize=None, resize_with=resize_with)
    crop_KTCHW = small.resize_and_crop(torch.full((2, 3, *size), 255, dtype=torch.uint8), shift=shift)
    assert crop_KTCHW.shape == (1, 2, 3, 32, 28) and set(crop_KTCHW.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("settings", RANDOM, ids=str)
def test_a_clip_is_a_function_of_the_draw_alone(settings):
    vary, frames_TCHW = augment(**settings), noise()
    untouched, state = frames_TCHW.clone(), torch.get_rng_state()
    first = [vary(frames_TCHW, rng(seed)) for seed in range(12)]
    np.random.seed(1)  # noqa: NPY002 - the global generators must not matter
    torch.rand(3)
    second = [augment(**settings)(frames_TCHW, rng(seed)) for seed in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(frames_TCHW, untouched)
    assert any(not torch.equal(first[0], other) for other in first[1:])
    assert all(clip.shape == (4, 3, 32, 28) and clip.dtype == torch.float32 and clip.isfinite().all() for clip in first)
    torch.set_rng_state(state)
    vary(frames_TCHW, rng(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", RANDOM, ids=str)
def test_a_constant_video_stays_constant_over_time(settings):
    frames_TCHW = noise(num_frames=1).expand(4, -1, -1, -1).contiguous()
    for seed in range(20):
        clip_TCHW = augment(**settings)(frames_TCHW, rng(seed))
        assert torch.equal(clip_TCHW, clip_TCHW[:1].expand_as(clip_TCHW))


def test_clips_are_mirrored_as_often_as_asked_and_never_where_sides_count():
    frames_TCHW = noise(32, 28)
    straight, mirrored = PREPROCESS(frames_TCHW)[0], PREPROCESS(frames_TCHW.flip(-1))[0]
    seen = [augment(crop="centre", flip=0.25)(frames_TCHW, rng(seed)) for seed in range(400)]
    assert all(torch.equal(clip, straight) or torch.equal(clip, mirrored) for clip in seen)
    assert 70 < sum(torch.equal(clip, mirrored) for clip in seen) < 130  # 100, four standard deviations about it
    for seed in range(20):
        assert torch.equal(augment(False, crop="centre", flip=1.0)(frames_TCHW, rng(seed)), straight)


@pytest.mark.parametrize("crop", ["random_resized", "multi_scale"])
def test_left_stays_left_without_mirroring(crop):
    """Levels grow from left to right in any cut, and after every operation that does not invert colours."""
    frames_TCHW = torch.arange(60, dtype=torch.uint8).mul(4).expand(4, 3, 40, 60).contiguous()
    for seed in range(30):
        columns_W = augment(False, crop=crop, flip=1.0)(frames_TCHW, rng(seed))[0, 0].mean(0)
        assert (columns_W.diff() >= 0).all() and columns_W[-1] > columns_W[0]


def test_a_cut_shows_what_the_box_holds():
    """Each pixel tells its place: corners of the clip are corners of one box within the frame, of the drawn size."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(120), indexing="ij")
    frames_TCHW = torch.stack([y, x, x]).to(torch.uint8)[None]
    for seed in range(20):
        for crop in ("random_resized", "multi_scale"):
            vary = augment(False, crop=crop)
            top, left, h, w = (
                random_box(96, 120, vary.settings.crop_area, vary.settings.crop_ratio, rng(seed))
                if crop == "random_resized"
                else multi_scale_box(96, 120, rng(seed))
            )
            pixels_CHW = vary(frames_TCHW, rng(seed))[0]
            levels_CHW = (pixels_CHW * torch.tensor(PREPROCESS.std)[:, None, None]) + torch.tensor(PREPROCESS.mean)[
                :, None, None
            ]
            rows, columns = levels_CHW[0].mul(255).mean(1), levels_CHW[1].mul(255).mean(0)
            assert rows.mean() == pytest.approx(top + (h - 1) / 2, abs=0.6)
            assert columns.mean() == pytest.approx(left + (w - 1) / 2, abs=0.6)
            assert rows[-1] - rows[0] == pytest.approx(h * 31 / 32, abs=2)
            assert columns[-1] - columns[0] == pytest.approx(w * 27 / 28, abs=2)


def test_erasing_blots_out_one_box_only():
    frames_TCHW = noise()
    plain = PREPROCESS(frames_TCHW)[0]
    sizes = []
    for seed in range(40):
        changed_THW = (augment(**PLAIN, erasing=1.0)(frames_TCHW, rng(seed)) != plain).any(1)
        assert (changed_THW == changed_THW[0]).all()
        rows, columns = changed_THW[0].any(1).nonzero()[:, 0], changed_THW[0].any(0).nonzero()[:, 0]
        box = changed_THW[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        sizes.append(box.numel() / changed_THW[0].numel())
    assert 0.01 < min(sizes) < 0.1 and 0.25 < max(sizes) < 0.37
    clips = [augment(**PLAIN, erasing=0.25)(frames_TCHW, rng(seed)) for seed in range(200)]
    assert 30 < sum(not torch.equal(clip, plain) for clip in clips) < 75  # 50
    assert torch.equal(augment(**PLAIN, erasing=0.0)(frames_TCHW, rng(0)), plain)


@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 1000), low=st.floats(0.05, 1))
def test_boxes_lie_within_the_frame_and_have_the_area_and_the_ratio(height, width, seed, low):
    y, x, h, w = random_box(height, width, (low, 1.0), (0.75, 4 / 3), rng(seed))
    assert 0 <= y <= height - h and 0 <= x <= width - w and h > 0 and w > 0
    if min(h, w) > 20:  # whole pixels
        assert 0.75 * 0.94 < w / h < 4 / 3 * 1.06
        if 0.8 < height / width < 1.25:
            assert h * w > 0.9 * low * height * width
    y, x, h, w = multi_scale_box(height, width, rng(seed))
    assert 0 <= y <= height - h and 0 <= x <= width - w and h > 0 and w > 0


def test_the_ratio_is_width_over_height():
    for seed in range(50):
        *_, h, w = random_box(200, 200, (0.2, 0.4), (1.5, 2.0), rng(seed))
        assert 1.45 < w / h < 2.07


def test_multi_scale_takes_the_scales_and_places_of_tsn():
    boxes = {multi_scale_box(100, 160, rng(seed)) for seed in range(3000)}
    assert {h for *_, h, _ in boxes} == {w for *_, w in boxes} == {100, 87, 75, 66}
    assert {(h, w) for *_, h, w in boxes if {h, w} == {100, 75} or {h, w} == {100, 66}} == set()
    assert {(y, x) for y, x, h, w in boxes if (h, w) == (75, 75)} == {(0, 0), (0, 85), (25, 0), (25, 85), (12, 42)}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_operation_changes_a_picture_but_keeps_its_shape_and_frames_apart(operation):
    levels_TCHW = noise().float() / 255 * 0.8 + 0.1
    for strength in (-1.0, -0.4, 0.4, 1.0):
        changed = operation(levels_TCHW.clone(), strength)
        assert changed.shape == levels_TCHW.shape and changed.isfinite().all()
        assert not torch.allclose(changed.clamp(0, 1), levels_TCHW, atol=1e-2)
        alone = torch.cat([operation(frame[None].clone(), strength) for frame in levels_TCHW])
        torch.testing.assert_close(changed, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["equalize", "auto_contrast", "posterize", "solarize", "sharpness", "color", "contrast", "brightness"],
)
def test_operations_agree_with_pillows(name):
    """Pillow made these operations what they are in the field; it counts in whole levels, hence the tolerance."""
    from PIL import Image, ImageEnhance, ImageOps

    levels_THWC = np.random.default_rng(0).integers(30, 200, (1, 40, 60, 3), dtype=np.uint8)
    pillows: dict[str, Any] = {
        "equalize": ImageOps.equalize,
        "auto_contrast": ImageOps.autocontrast,
        "posterize": lambda image: ImageOps.posterize(image, 6),
        "solarize": lambda image: ImageOps.solarize(image, 128),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.45),
        "color": lambda image: ImageEnhance.Color(image).enhance(1.45),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.45),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.45),
    }
    theirs = pillows[name](Image.fromarray(levels_THWC[0]))
    ours = OPERATIONS[name](torch.from_numpy(levels_THWC).permute(0, 3, 1, 2).float() / 255, 0.5).clamp(0, 1) * 255
    difference = (ours[0].permute(1, 2, 0) - torch.from_numpy(np.array(theirs)).float()).abs()
    assert difference.max() <= (8 if name == "equalize" else 1.6)  # kornia's histogram has its own rounding


def test_operations_move_the_picture_by_the_stated_amount_and_leave_the_middle():
    levels = torch.zeros(1, 3, 41, 61)
    levels[..., 20, 30] = 1
    spots = {}
    for name in ("translate_x", "translate_y", "rotate", "shear_x", "shear_y"):
        moved_HW = OPERATIONS[name](levels, 0.5)[0, 0]
        spots[name] = divmod(int(moved_HW.argmax()), 61)
    assert spots["rotate"] == spots["shear_x"] == spots["shear_y"] == (20, 30)
    assert spots["translate_x"] == (20, 30 + round(0.225 * 61))
    assert spots["translate_y"] == (20 + round(0.225 * 41), 30)


def test_stronger_is_further_and_operations_differ(monkeypatch):
    frames_TCHW = noise()
    plain = PREPROCESS(frames_TCHW)[0]
    far = [
        np.mean(
            [
                (augment(**PLAIN, randaugment=1, magnitude=m)(frames_TCHW, rng(s)) - plain).abs().mean()
                for s in range(40)
            ]
        )
        for m in (1, 9)
    ]
    assert far[0] < far[1]
    used: list[str] = []

    def recorded(name: str) -> Operation:
        def operation(levels_TCHW: torch.Tensor, strength: float) -> torch.Tensor:
            used.append(name)
            return OPERATIONS[name](levels_TCHW, strength)

        return operation

    monkeypatch.setattr("sttm.data.transforms.augment.OPERATIONS", {name: recorded(name) for name in OPERATIONS})
    for seed in range(60):
        used.clear()
        augment(**PLAIN, randaugment=4)(frames_TCHW, rng(seed))
        assert len(used) == len(set(used)) == 4


def test_what_cannot_be_is_said_at_the_start(monkeypatch):
    with pytest.raises(SttmError, match="randaugment=99 is too many"):
        augment(randaugment=99)
    whole = Preprocess("Vivit", Sampling(4), 32, None, 1 / 255, 0.0, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(SttmError, match="crop_size"):
        Augment(AugmentSettings(), whole, may_flip=True)
    monkeypatch.setitem(sys.modules, "kornia", None)
    augment()
    with pytest.raises(SttmError, match=r"pip install 'sttm\[train\]'"):
        augment(randaugment=2)
