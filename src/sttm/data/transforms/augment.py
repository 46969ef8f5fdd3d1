"""Augmentation of training clips: crop, flip, RandAugment and erasing, each the same for all frames of a clip.

All randomness comes from the generator passed in, so that a clip is a function of the video and the generator.
Frames are cropped and resized one by one as they are decoded, so that no whole ones are kept. Levels stay uint8
meanwhile; colours and shapes are changed by kornia's functions, which use no randomness of their own.

Legend: T frames, C = 3 colours, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sttm.config.sections import AugmentSettings
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.decode import Prepare
from sttm.errors import SttmError

Box = tuple[int, int, int, int]  # top, left, height, width
SCALES = (1.0, 0.875, 0.75, 0.66)  # of the shorter side; height and width may be one step apart (TSN)
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)
STRONGEST = 10  # as in the recipes that say "magnitude 7"


class Augment:
    """Turn decoded frames into one augmented training clip: frames_TCHW uint8 to normalised pixels_TCHW float32.

    `crops` and then `finish` do the same to frames that come one at a time.

    Raises:
        SttmError: if the preprocessing has no fixed size, or the settings are impossible or need kornia.
    """

    def __init__(self, settings: AugmentSettings, preprocess: Preprocess, may_flip: bool) -> None:
        self.settings, self.preprocess, self.may_flip = settings, preprocess, may_flip
        size = preprocess.crop or preprocess.resize
        if not isinstance(size, tuple):
            raise SttmError("frames of any shape make no batch; give the preprocessor of this model a crop_size")
        if settings.randaugment > len(OPERATIONS):
            allowed = f"there are {len(OPERATIONS)} operations; give at most that number"
            raise SttmError(f"augment.randaugment={settings.randaugment} is too many: {allowed}")
        if settings.shift >= min(size) / 2:
            most = (min(size) - 1) // 2
            raise SttmError(f"augment.shift={settings.shift} moves the crop by half of its side; give at most {most}")
        if settings.randaugment:
            _import_kornia()
        self.size = size

    def __call__(self, frames_TCHW: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment one clip."""
        crops_of = self.crops([rng])
        return self.finish(torch.cat([crops_of(frame_CHW) for frame_CHW in frames_TCHW]), rng)

    def crops(self, rngs: Sequence[np.random.Generator]) -> Prepare:
        """Return a function of each frame of a video that crops it for K clips, a generator each: CHW to KCHW.

        A clip shows the same part of all frames: it is chosen at the first.
        """
        boxes: list[Box] = []
        shifts = [self._shift(rng) for rng in rngs]

        def crops_of(frame_CHW: Tensor) -> Tensor:
            if self.settings.crop == "centre" and self.settings.shift:
                moved = [self.preprocess.resize_and_crop(frame_CHW[None], shift=shift)[:, 0] for shift in shifts]
                return torch.cat(moved)
            if self.settings.crop == "centre":
                return self.preprocess.resize_and_crop(frame_CHW[None])[:, 0].expand(len(rngs), -1, -1, -1)
            if not boxes:
                height, width = frame_CHW.shape[1:]
                boxes.extend(self._box(height, width, rng) for rng in rngs)
            return torch.stack([self._cropped(frame_CHW, box) for box in boxes])

        return crops_of

    def finish(self, frames_TCHW: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment a clip whose frames were cropped with the same generator."""
        if self.may_flip and rng.random() < self.settings.flip:
            frames_TCHW = frames_TCHW.flip(-1)
        if self.settings.randaugment:
            frames_TCHW = rand_augment(frames_TCHW, self.settings.randaugment, self.settings.magnitude, rng)
        pixels_TCHW = self.preprocess.normalise(frames_TCHW)
        if rng.random() < self.settings.erasing:
            erase(pixels_TCHW, rng)
        return pixels_TCHW

    def _box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        if self.settings.crop == "multi_scale":
            return multi_scale_box(height, width, rng)
        return random_box(height, width, self.settings.crop_area, self.settings.crop_ratio, rng)

    def _shift(self, rng: np.random.Generator) -> tuple[int, int]:
        most = self.settings.shift
        y, x = rng.integers(-most, most + 1, size=2).tolist() if most else (0, 0)
        return y, x

    def _cropped(self, frame_CHW: Tensor, box: Box) -> Tensor:
        y, x, h, w = box
        part_CHW = frame_CHW[:, y : y + h, x : x + w]
        if (h, w) == self.size:
            return part_CHW
        return F.interpolate(part_CHW[None], self.size, mode=self.preprocess.resample, antialias=True)[0]


def _import_kornia() -> None:
    """Check that kornia is installed, and load it once for all the workers that are then forked."""
    try:
        import kornia.enhance
        import kornia.geometry.transform  # noqa: F401
    except ImportError:
        raise SttmError("augment.randaugment needs sttm[train]: pip install 'sttm[train]'") from None


def random_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Sample top, left, height and width of a box.

    Where ten samples do not fit, the box is the largest central one whose ratio is allowed.

    Args:
        area: least and greatest part of the frame's area.
        ratio: least and greatest width over height.
    """
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(1, min(width, round(height * shape))), max(1, min(height, round(width / shape)))
    return (height - h) // 2, (width - w) // 2, h, w


def multi_scale_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Sample top, left, height and width as TSN does: a few scales, and the corners or the centre."""
    sides = [max(1, int(min(height, width) * scale)) for scale in SCALES]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[rng.integers(len(pairs))]
    down, right = height - h, width - w
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    y, x = corners[rng.integers(len(corners))]
    return y, x, h, w


def erase(pixels_TCHW: Tensor, rng: np.random.Generator) -> None:
    """Replace a box by noise, the same noise in all frames, in place."""
    *_, height, width = pixels_TCHW.shape
    y, x, h, w = random_box(height, width, ERASED_AREA, ERASED_RATIO, rng)
    noise_CHW = rng.standard_normal((3, h, w), dtype=np.float32)
    pixels_TCHW[:, :, y : y + h, x : x + w] = torch.from_numpy(noise_CHW)


# --- RandAugment --------------------------------------------------------------------------------------------
# Each operation takes levels from 0 to 1 and a strength from 0 to 1, negative for the other direction. None of them
# mirrors a clip or rotates it by more than 30 degrees, so left stays left.


def rand_augment(frames_TCHW: Tensor, number: int, magnitude: int, rng: np.random.Generator) -> Tensor:
    """Apply `number` different operations at `magnitude` of 10; uint8 levels become float levels, both up to 255."""
    levels_TCHW = frames_TCHW.float().div_(255)
    operations = list(OPERATIONS.values())
    for choice in rng.permutation(len(operations))[:number]:
        sign = 1 if rng.random() < 0.5 else -1
        levels_TCHW = operations[choice](levels_TCHW, sign * magnitude / STRONGEST).clamp_(0, 1)
    return levels_TCHW.mul_(255)


def _blend(levels_TCHW: Tensor, other: Tensor, strength: float) -> Tensor:
    """Extrapolate away from another picture, or towards it where strength is negative, by at most nine tenths."""
    return levels_TCHW + 0.9 * strength * (levels_TCHW - other)


def _grey(levels_TCHW: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(levels_TCHW)


def _affine(levels_TCHW: Tensor, matrix: list[list[float]]) -> Tensor:
    """Map every point about the frame's centre; what comes in from outside is grey."""
    from kornia.geometry.transform import warp_affine

    frames, colours, height, width = levels_TCHW.shape
    (a, b, x), (c, d, y) = matrix
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    shift_x = x * width + middle_x - a * middle_x - b * middle_y
    shift_y = y * height + middle_y - c * middle_x - d * middle_y
    # One grid for all frames: they become channels of one picture. Grey is moved to 0, the fill value.
    picture = levels_TCHW.reshape(1, frames * colours, height, width) - 0.5
    about = torch.tensor([[[a, b, shift_x], [c, d, shift_y]]])
    moved = warp_affine(picture, about, (height, width), padding_mode="zeros")
    return moved.add_(0.5).reshape(frames, colours, height, width)


def _auto_contrast(levels_TCHW: Tensor, _: float) -> Tensor:
    low, high = levels_TCHW.amin((-2, -1), keepdim=True), levels_TCHW.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (levels_TCHW - low) / (high - low).clamp_min(1e-6), levels_TCHW)


def _equalize(levels_TCHW: Tensor, _: float) -> Tensor:
    from kornia.enhance import equalize

    return equalize(levels_TCHW)


def _posterize(levels_TCHW: Tensor, strength: float) -> Tensor:
    lost_bits = round(4 * abs(strength))
    return levels_TCHW.mul(255).round().to(torch.uint8).bitwise_and(256 - 2**lost_bits).float().div_(255)


def _contrast(levels_TCHW: Tensor, strength: float) -> Tensor:
    # A whole level, so that the order in which threads add up does not matter.
    mean_T111 = _grey(levels_TCHW).mean((-3, -2, -1), keepdim=True).mul(255).round().div(255)
    return _blend(levels_TCHW, mean_T111, strength)


def _sharpness(levels_TCHW: Tensor, strength: float) -> Tensor:
    # The usual smoothing, 5 in the middle and 1 around it over 13, leaves the border alone.
    smooth_TCHW = levels_TCHW.clone()
    inside = (..., slice(1, -1), slice(1, -1))
    if min(levels_TCHW.shape[-2:]) > 2:
        smooth_TCHW[inside] = (9 * F.avg_pool2d(levels_TCHW, 3, 1) + 4 * levels_TCHW[inside]) / 13
    return _blend(levels_TCHW, smooth_TCHW, strength)


def _rotate(levels_TCHW: Tensor, strength: float) -> Tensor:
    angle = math.radians(30 * strength)
    return _affine(levels_TCHW, [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0]])


Operation = Callable[[Tensor, float], Tensor]
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda levels, _: 1 - levels,
    "posterize": _posterize,
    "solarize": lambda levels, strength: torch.where(levels < 1 - abs(strength), levels, 1 - levels),
    "solarize_add": lambda levels, strength: torch.where(levels < 0.5, levels + 0.43 * abs(strength), levels),
    "color": lambda levels, strength: _blend(levels, _grey(levels), strength),
    "contrast": _contrast,
    "brightness": lambda levels, strength: levels * (1 + 0.9 * strength),
    "sharpness": _sharpness,
    "rotate": _rotate,
    "shear_x": lambda levels, strength: _affine(levels, [[1, 0.3 * strength, 0], [0, 1, 0]]),
    "shear_y": lambda levels, strength: _affine(levels, [[1, 0, 0], [0.3 * strength, 1, 0]]),
    "translate_x": lambda levels, strength: _affine(levels, [[1, 0, 0.45 * strength], [0, 1, 0]]),
    "translate_y": lambda levels, strength: _affine(levels, [[1, 0, 0], [0, 1, 0.45 * strength]]),
}
