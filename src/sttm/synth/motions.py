"""How objects move in synthetic videos: the classes that only time distinguishes, and their tracks.

A clip of *motion* has six channels: across, down, size and angle of a target, the gap between a pair, and the way
of a passer around the target. In every clip each channel takes the same evenly spaced values, one a frame; the
class is only the order in which one channel takes them, while the five others sway whatever the class. So no single
frame tells the class, shuffled frames hardly do, and a class played backwards is another class or itself.

Legend: T frames.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Values = NDArray[np.float64]
Tracks = dict[str, Values]

CHANNELS = ("across", "down", "size", "angle", "gap")
ORDERS = ("grow", "shrink", "drop", "spring", "peak", "dip", "sway")


@dataclass(frozen=True)
class Motion:
    """One class of *motion*: the channel that matters, and the order in which it takes its values."""

    template: str
    """As Something-Something writes it, with [something] for a name."""
    channel: str
    order: str
    backwards: str
    """The template that the same video shows when played backwards."""

    @property
    def label(self) -> str:
        """The name of the class: the template without its square brackets."""
        return self.template.replace("[", "").replace("]", "")


def _motions() -> tuple[Motion, ...]:
    mirrored = (
        ("across", "shrink", "grow", "Moving [something] left", "Moving [something] right"),
        ("down", "shrink", "grow", "Moving [something] up", "Moving [something] down"),
        ("down", "drop", "spring", "[Something] falling and bouncing", "[Something] hopping and rising"),
        ("size", "grow", "shrink", "Moving [something] closer to the camera",
         "Moving [something] away from the camera"),
        ("angle", "grow", "shrink", "Turning [something] clockwise", "Turning [something] anticlockwise"),
        ("gap", "shrink", "grow", "Moving [something] and [something] closer to each other",
         "Moving [something] and [something] away from each other"),
        ("way", "behind", "before", "[Something] passing behind [something] and coming back in front of it",
         "[Something] passing in front of [something] and coming back behind it"),
    )  # fmt: skip
    palindromes = (
        ("gap", "dip", "[Something] colliding with [something] and both bouncing back"),
        ("gap", "peak", "[Something] and [something] parting and coming back together"),
        ("across", "dip", "Pretending to move [something] left and going back"),
        ("across", "peak", "Pretending to move [something] right and going back"),
    )
    motions = []
    for channel, first, second, template, backwards in mirrored:
        motions.append(Motion(template, channel, first, backwards))
        motions.append(Motion(backwards, channel, second, template))
    return tuple(motions) + tuple(Motion(text, channel, order, text) for channel, order, text in palindromes)


MOTIONS = _motions()
MOTION_CLASSES = tuple(motion.label for motion in MOTIONS)


# --- tracks ---------------------------------------------------------------------------------------


def _triangle(turns: Values) -> Values:
    """Return a triangle wave: 0 at 0 turns, 1 at a half, 0 again at 1."""
    return 1 - np.abs(2 * (turns % 1) - 1)


def _height(time: Values) -> Values:
    """Return the height of a ball dropped at time 0 from 1: it lands at 0.4 and bounces, lower each time."""
    height, landed, top, half = np.zeros_like(time), -0.4, 1.0, 0.4
    for _ in range(3):
        arc = (time - landed) / half - 1
        height = np.where(np.abs(arc) <= 1, top * (1 - arc**2), height)
        landed, top, half = landed + 2 * half, 0.42 * top, 0.65 * half
    return height


def visit(order: str, frames: int, rng: Rng, *, central: bool = False) -> Values:
    """Return `frames` evenly spaced values in [-1, 1], each once, in the named order; shape [T].

    The values are the same for every order, so that single frames and shuffled frames tell nothing. To go
    there and back, a path takes every second value on its way there and the others on its way back.

    Args:
        central: start a sway away from either end, where it would look like a peak or a dip.
    """
    # Shifted by a quarter frame: no two frames of a wave are equal, and it is random which is lower.
    time = (np.arange(frames) + rng.choice([0.25, 0.75])) / frames
    match order:
        case "grow" | "shrink":
            path = time
        case "peak" | "dip":
            path = _triangle(time)
        case "drop":  # the lowest point of a picture has the greatest number
            path = -_height(time)
        case "spring":
            path = -_height(time)[::-1]
        case _:
            edge = 0.05 if central else 0.0
            begin = rng.uniform(edge, 0.5 - edge) + 0.5 * rng.integers(2)
            # Of varying speed, each channel by itself: two sways in phase would tell that neither is the class.
            speed = np.sin(2 * np.pi * (time + rng.uniform())) / (2 * np.pi)
            path = _triangle(begin + time + 0.9 * (speed - speed[0]))
    if order in ("shrink", "dip"):
        path = -path
    rank = path.argsort(kind="stable").argsort()
    return (2 * rank + 1) / frames - 1


def circle(order: str, frames: int, rng: Rng) -> tuple[Values, Values]:
    """Return where a passer is beside the target, in [-1, 1], and whether before it (1) or behind (0); shapes [T].

    The positions are those of one circle. A class follows it; a sway goes there and back before the target and
    there and back behind it, with as much of either in both halves of the clip.
    """
    turn = (np.arange(frames) + 0.5) / frames
    walk = np.arange(frames)
    if order == "behind":
        walk = walk[::-1]
    elif order == "sway":
        swing = np.concatenate([walk[: frames // 2 : 2], walk[1 : frames // 2 : 2][::-1]])
        late = frames // 4 + rng.integers(-(frames // 8), frames // 8 + 1)
        walk = np.roll(np.concatenate([swing, frames - 1 - swing]), late)
        walk = walk[:: rng.choice([-1, 1])]
        walk = walk if rng.integers(2) else frames - 1 - walk
    return rng.choice([-1, 1]) * np.cos(2 * np.pi * turn)[walk], (turn < 0.5)[walk].astype(float)


def tracks_of(orders: dict[str, str], frames: int, size: int, rng: Rng) -> Tracks:
    """Return every object's position in every frame, in pixels and radians; see `SyntheticClip.tracks`."""
    unit = size / 112
    at = {c: visit(orders[c], frames, rng, central=c in ("across", "gap")) for c in CHANNELS}
    much = dict(zip(CHANNELS, rng.uniform(0.85, 1.15, len(CHANNELS)), strict=True))
    middle = rng.uniform(28, 84, 2) * unit
    radius = rng.uniform(11.5, 16.5) * unit * np.exp(0.3 * much["size"] * at["size"])
    angle = rng.uniform(-2.5, -0.6) + np.radians(68) * much["angle"] * at["angle"]
    x, y = (m + 22 * unit * much[c] * at[c] for m, c in zip(middle, ("across", "down"), strict=True))

    between = rng.uniform(34, 78, 2) * unit
    while np.hypot(*(between - middle)) < 26 * unit:  # the pair must not cover the target's centre
        between = rng.uniform(34, 78, 2) * unit
    gap = unit * (16 + rng.uniform(0, 14) + 20 * much["gap"] * (1 + at["gap"]))
    slope = rng.uniform(0, 2 * np.pi)
    arm = 0.5 * gap[:, None] * np.array([np.cos(slope), np.sin(slope)])

    beside, before = circle(orders["way"], frames, rng)
    passer_y = y + rng.uniform(-0.25, 0.25) * radius
    return {
        "target": np.stack([x, y, radius, angle], axis=1),
        "pair": np.concatenate([between - arm, between + arm], axis=1),
        "passer": np.stack([x + 1.65 * radius * beside, passer_y, before], axis=1),
    }
