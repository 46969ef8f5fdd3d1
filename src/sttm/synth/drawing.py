"""Draw textured shapes over cluttered backdrops: the parts of the synthetic videos.

Legend: T frames, H x W a picture, h x w the window around one object, 3 colours (RGB in [0, 1]).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Rng = np.random.Generator

# Largest distance of a shape's edge from its centre, in radii.
REACH = 1.42


# --- shapes: from (u, v) in radii to how deep inside that is, in radii; negative is outside -------


def _polygon(u: Array, v: Array, corners: int) -> Array:
    wedge = np.float32(2 * np.pi / corners)
    angle = np.arctan2(v, u) % wedge - wedge / 2
    return np.cos(wedge / 2) - np.hypot(u, v) * np.cos(angle)


def _wavy(u: Array, v: Array, teeth: int, depth: float, sharpness: float) -> Array:
    wave = np.clip(np.cos(np.arctan2(v, u) * teeth) * sharpness, -1, 1)
    return 1 - depth + depth * wave - np.hypot(u, v)


def _star(u: Array, v: Array) -> Array:
    wedge = np.float32(2 * np.pi / 5)
    fold = np.abs(np.arctan2(v, u) % wedge - wedge / 2) / (wedge / 2)  # 1 at a tip, 0 in a notch
    return 0.45 + 0.7 * fold**1.5 - np.hypot(u, v)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: 1 - np.hypot(u, v),
    "square": lambda u, v: 0.85 - np.maximum(np.abs(u), np.abs(v)),
    "triangle": lambda u, v: 1.2 * _polygon(u / 1.2, v / 1.2, 3),
    "hexagon": lambda u, v: _polygon(u, v, 6),
    "star": _star,
    "flower": lambda u, v: _wavy(u, v, 6, 0.2, 1),
    "gear": lambda u, v: _wavy(u, v, 8, 0.13, 4),
    "cross": lambda u, v: np.minimum(1 - np.maximum(np.abs(u), np.abs(v)), 0.42 - np.minimum(np.abs(u), np.abs(v))),
    "ring": lambda u, v: 0.32 - np.abs(np.hypot(u, v) - 0.7),
    "crescent": lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u + 0.65, v) - 0.7),
    "dome": lambda u, v: np.minimum(1.05 - np.hypot(u, v), u + 0.35),
    "bar": lambda u, v: np.minimum(1.15 - np.abs(u), 0.55 - np.abs(v)),
}


# --- textures: from (u, v) in radii to a mix of two colours in [0, 1] -----------------------------


def _hard(wave: Array) -> Array:
    return np.clip(0.5 + 2 * wave, 0, 1)


def _speckles(u: Array, v: Array) -> Array:
    # An arithmetic hash of the cell: noise that needs no table and turns with the object.
    column, row = np.floor(u * 3.5), np.floor(v * 3.5)
    return np.modf(np.abs(np.sin(column * 12.9898 + row * 78.233) * 437.58))[0]


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "striped": lambda u, v: _hard(np.sin(7.5 * u)),
    "checked": lambda u, v: _hard(np.sin(5.5 * u) * np.sin(5.5 * v)),
    "dotted": lambda u, v: _hard(np.cos(6.5 * u) * np.cos(6.5 * v) - 0.35),
    "speckled": _speckles,
    "shaded": lambda u, v: np.clip(0.5 + 0.5 * v, 0, 1),
    "ringed": lambda u, v: _hard(np.sin(9 * np.hypot(u, v))),
}


# --- backdrops: from pixels in hundredths of the picture to a mix of two colours -------------------


def _bricks(x: Array, y: Array) -> Array:
    row = np.floor(y / 9)
    mortar = np.minimum((x + 9 * (row % 2)) % 18, 1.5 * (y % 9))
    return np.clip(mortar / 2, 0, 1)


BACKDROPS: dict[str, Callable[[Array, Array], Array]] = {
    "waves": lambda x, y: 0.5 + 0.5 * np.sin(0.55 * y + 2.2 * np.sin(0.16 * x)),
    "bricks": _bricks,
    "tiles": lambda x, y: _hard(np.sin(0.3 * (x + y)) * np.sin(0.3 * (x - y))),
    "grass": lambda x, y: 0.5 + 0.5 * np.sin(1.3 * x + 1.5 * np.sin(0.31 * x + 0.2 * y)),
    "clouds": lambda x, y: 0.5 + 0.25 * (np.sin(0.09 * x + 0.05 * y) + np.sin(0.13 * y - 0.06 * x)),
    "ripples": lambda x, y: 0.5 + 0.5 * np.sin(0.45 * np.hypot(x - 50, y - 50)),
}


def colour(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """Return a random colour [3] of any hue, with saturation and value from the given ranges."""
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (v * (1 - s + s * ramp)).astype(np.float32)


@dataclass(frozen=True)
class Look:
    """The constant appearance of an object."""

    shape: str
    texture: str
    dark: Array
    light: Array
    outline: Array | None = None
    nose: bool = False
    """A white bar from the centre to the edge: without it the rotation of a disc would be invisible."""

    @property
    def name(self) -> str:
        """Texture and shape, such as "striped star"."""
        return f"{self.texture} {self.shape}"


@dataclass(frozen=True)
class Sprite:
    """One object drawn for every frame, ready to be composited."""

    corner_T2: NDArray[np.int64]
    rgb_Thw3: Array
    alpha_Thw1: Array

    def composite(self, picture_HW3: Array, frame: int) -> None:
        """Blend the object over one picture, in place; parts outside the picture are cut off."""
        top, left = self.corner_T2[frame]
        side, (height, width) = self.rgb_Thw3.shape[1], picture_HW3.shape[:2]
        rows = slice(max(0, -top), min(side, height - top))
        columns = slice(max(0, -left), min(side, width - left))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        under = picture_HW3[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
        alpha = self.alpha_Thw1[frame, rows, columns]
        under += alpha * (self.rgb_Thw3[frame, rows, columns] - under)


def draw(look: Look, pose_T4: Array) -> Sprite:
    """Draw an object at every pose (x, y, radius, angle) of a track, in pixels and radians, with soft edges.

    All frames are drawn at once in windows that just hold the largest one: no loop over pixels or frames.
    """
    x_T, y_T, radius_T, angle_T = pose_T4.T
    half = int(np.ceil(radius_T.max() * REACH)) + 1
    corner_T2 = np.stack([np.floor(y_T), np.floor(x_T)], axis=1).astype(np.int64) - half
    grid = np.arange(2 * half + 1, dtype=np.float32)
    pose = (np.cos(angle_T) / radius_T, np.sin(angle_T) / radius_T)
    cos_T11, sin_T11 = (p.astype(np.float32)[:, None, None] for p in pose)
    dy_Th1 = (grid[None] + (corner_T2[:, 0] - y_T)[:, None].astype(np.float32))[:, :, None]
    dx_T1w = (grid[None] + (corner_T2[:, 1] - x_T)[:, None].astype(np.float32))[:, None, :]
    u, v = cos_T11 * dx_T1w + sin_T11 * dy_Th1, cos_T11 * dy_Th1 - sin_T11 * dx_T1w

    pixels = radius_T.astype(np.float32)[:, None, None]
    depth = SHAPES[look.shape](u, v) * pixels
    mix = TEXTURES[look.texture](u, v)[..., None].astype(np.float32)
    rgb = look.dark + mix * (look.light - look.dark)
    if look.outline is not None:
        rim = np.clip(0.17 * pixels + 1.2 - depth, 0, 1)[..., None]
        rgb += rim * (look.outline - rgb)
    if look.nose:
        bar = np.minimum(0.22 - np.abs(v), np.minimum(u - 0.05, 1.1 - u)) * pixels
        rgb += np.clip(bar + 0.5, 0, 1)[..., None] * (1 - rgb)
        depth = np.maximum(depth, bar)
    alpha = np.clip(depth + 0.5, 0, 1)[..., None]
    return Sprite(corner_T2, rgb.astype(np.float32), alpha.astype(np.float32))


def random_look(
    rng: Rng,
    *,
    shape: str | None = None,
    texture: str | None = None,
    outline: Array | None = None,
    nose: bool = False,
    dull: bool = False,
) -> Look:
    """Choose at random what is not given; dull colours are for clutter."""
    shape, texture = shape or str(rng.choice(list(SHAPES))), texture or str(rng.choice(list(TEXTURES)))
    saturation = (0.0, 0.3) if dull else (0.2, 0.6)
    dark, light = colour(rng, saturation, (0.1, 0.35)), colour(rng, saturation, (0.45, 0.75))
    return Look(shape, texture, dark, light, outline, nose)


def draw_backdrop(rng: Rng, size: int, name: str, clutter: int) -> Array:
    """Draw a backdrop [size, size, 3] in random muted colours, with `clutter` still objects over it."""
    unit = size / 100
    tilt, zoom = rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.2) / unit
    pixel = np.arange(size, dtype=np.float32) * np.float32(zoom)
    x, y = pixel[None] + np.float32(tilt) * pixel[:, None], pixel[:, None] - np.float32(tilt) * pixel[None]
    mix = BACKDROPS[name](x + rng.uniform(0, 40), y + rng.uniform(0, 40))[..., None]
    dark, light = colour(rng, (0.1, 0.4), (0.2, 0.4)), colour(rng, (0.05, 0.35), (0.4, 0.65))
    picture = (dark + mix * (light - dark)).astype(np.float32)
    for _ in range(clutter):
        x, y = rng.uniform(0, size, 2)
        pose_14 = np.array([[x, y, rng.uniform(4, 11) * unit, rng.uniform(0, 2 * np.pi)]])
        draw(random_look(rng, dull=True), pose_14).composite(picture, 0)
    return picture
