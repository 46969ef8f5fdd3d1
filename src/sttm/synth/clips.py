"""Design and draw one synthetic clip: its objects, its backdrop, and the pictures.

Legend: T frames, H x W a picture, 3 colours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sttm.synth.drawing import BACKDROPS, Look, Rng, draw, draw_backdrop, random_look
from sttm.synth.motions import CHANNELS, MOTION_CLASSES, MOTIONS, ORDERS, Tracks, Values, tracks_of, visit

VERSION = 1
"""Increased whenever a clip of the same seed and index would change."""

SCENES = tuple(
    (shape, texture, list(BACKDROPS)[(row + column) % 4])
    for row, shape in enumerate(("star", "disc", "square", "cross"))
    for column, texture in enumerate(("striped", "checked", "dotted", "ringed"))
)
SCENE_CLASSES = tuple(f"{texture} {shape} over {backdrop}" for shape, texture, backdrop in SCENES)
CLASSES = {"motion": MOTION_CLASSES, "scene": SCENE_CLASSES}

# Outlines that identify the objects; nothing else in a picture is as bright.
MAGENTA, CYAN, YELLOW = (np.array(c, np.float32) for c in ((1, 0.1, 0.7), (0, 0.95, 1), (1, 0.9, 0)))


@dataclass(frozen=True)
class SyntheticClip:
    """All that is decided about a clip before it is drawn."""

    label: str
    template: str
    names: tuple[str, ...]
    backdrop: str
    looks: dict[str, Look]
    tracks: Tracks
    """`target` [T, 4]: x, y, radius, angle; in *motion* also `pair` [T, 4]: x, y of one and of the other, and
    `passer` [T, 3]: x, y, 1 before the target or 0 behind it. Pixels, y downwards; radians, clockwise."""


def design(kind: str, index: int, seed: int, *, frames: int = 16, size: int = 112) -> tuple[SyntheticClip, Rng]:
    """Decide everything about clip `index`; return it with the random generator that `render` goes on with."""
    rng = np.random.default_rng([VERSION, list(CLASSES).index(kind), seed, index])
    number = index % len(CLASSES[kind])
    backdrop = str(rng.choice(list(BACKDROPS)))
    if kind == "scene":
        shape, texture, backdrop = SCENES[number]
        look = random_look(rng, shape=shape, texture=texture)
        tracks = tracks_of({c: str(rng.choice(ORDERS)) for c in (*CHANNELS, "way")}, frames, size, rng)
        target = tracks["target"] * [1, 1, 1.4, 1]
        label = SCENE_CLASSES[number]
        return SyntheticClip(label, label, (look.name,), backdrop, {"target": look}, {"target": target}), rng
    motion = MOTIONS[number]
    looks = {
        "target": random_look(rng, outline=MAGENTA, nose=True),
        "one": random_look(rng, outline=CYAN),
        "other": random_look(rng, outline=CYAN),
        "passer": random_look(rng, outline=YELLOW),
    }
    acting = {"gap": ("one", "other"), "way": ("passer", "target")}.get(motion.channel, ("target",))
    orders = dict.fromkeys((*CHANNELS, "way"), "sway") | {motion.channel: motion.order}
    names = tuple(looks[actor].name for actor in acting)
    tracks = tracks_of(orders, frames, size, rng)
    return SyntheticClip(motion.label, motion.template, names, backdrop, looks, tracks), rng


def _movers(rng: Rng, frames: int, size: int) -> Iterator[tuple[Look, Values]]:
    """Yield look and track [T, 4] of two to four dull objects that move independently."""
    unit = size / 112
    for _ in range(rng.integers(2, 5)):
        x, y, angle = (visit(str(rng.choice(ORDERS)), frames, rng) for _ in range(3))
        middle, reach = rng.uniform(10, 102, 2) * unit, rng.uniform(0, 18, 2) * unit
        radius = np.full(frames, rng.uniform(5, 9) * unit)
        x, y, angle = middle[0] + reach[0] * x, middle[1] + reach[1] * y, rng.uniform(0, 2) * angle
        yield random_look(rng, dull=True), np.stack([x, y, radius, angle], axis=1)


def render(
    kind: str, index: int, seed: int, *, frames: int = 16, size: int = 112
) -> tuple[NDArray[np.uint8], str, Tracks]:
    """Draw clip `index` of a seed: pictures [T, H, W, 3] as uint8, its class, and its tracks.

    The three depend on the arguments alone. See `SyntheticClip.tracks` for the third.
    """
    clip, rng = design(kind, index, seed, frames=frames, size=size)
    slack = 2 + size // 56
    backdrop = draw_backdrop(rng, size + 2 * slack, clip.backdrop, clutter=int(rng.integers(4, 9)))
    # Each frame shakes independently: by a smooth shake, shuffled frames could be sorted.
    shake = rng.integers(-2, 3, (frames, 2)) * size // 112 + slack
    movers = [draw(look, track) for look, track in _movers(rng, frames, size)]
    tracks = clip.tracks
    sprites = {"target": draw(clip.looks["target"], tracks["target"])}
    if kind == "motion":
        small, upright = np.full(frames, 7.5 * size / 112), np.zeros(frames)
        for name, xy_T2 in zip(("one", "other"), np.split(tracks["pair"], 2, axis=1), strict=True):
            pose = np.column_stack([xy_T2, small, upright + rng.uniform(0, 6)])
            sprites[name] = draw(clip.looks[name], pose)
        pose = np.column_stack([tracks["passer"][:, :2], 0.55 * tracks["target"][:, 2], upright])
        sprites["passer"] = draw(clip.looks["passer"], pose)
    pictures = np.empty((frames, size, size, 3), np.uint8)
    for t, (top, left) in enumerate(shake):
        picture = backdrop[top : top + size, left : left + size].copy()
        for sprite in (*movers, *(sprites[name] for name in _back_to_front(tracks, t))):
            sprite.composite(picture, t)
        pictures[t] = picture * 255 + 0.5
    return pictures, clip.label, tracks


def _back_to_front(tracks: Tracks, frame: int) -> tuple[str, ...]:
    if "passer" not in tracks:
        return ("target",)
    before = tracks["passer"][frame, 2]
    return (*(("target", "passer") if before else ("passer", "target")), "one", "other")
