"""Makes labelled videos out of nothing: *motion*, whose classes only time tells apart, and *scene*, which any frame tells.

One idea keeps *motion* honest. A clip has six channels: across, down, size and angle of a target, the gap between a
pair, and the way of a passer around the target. In every clip each channel visits the same evenly spaced values, one a
frame; the class is only the order in which one of them does, while the five others sway, whatever the class. So neither
a single frame nor all of them in a shuffled heap can tell, and a class played backwards is another class or itself.

Legend: T frames, H x W a picture, 3 colours.
"""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from sttm.data.scenery import SETTINGS, Look, Rng, backdrop, draw, random_look
from sttm.errors import SttmError

Values = NDArray[np.float64]
Tracks = dict[str, Values]

VERSION = 1
"""Goes up whenever a clip of the same seed and index would come out otherwise."""
FPS = 8
CHANNELS = ("across", "down", "size", "angle", "gap")
ORDERS = ("grow", "shrink", "drop", "spring", "peak", "dip", "sway")


@dataclass(frozen=True)
class Motion:
    """One class of *motion*: the channel that matters, and the order in which it visits its values."""

    template: str
    """As Something-Something writes it, with [something] for a name."""
    channel: str
    order: str
    backwards: str
    """The template that the same video shows when played backwards."""

    @property
    def label(self) -> str:
        """The class: the template without its square brackets."""
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
    told = []
    for channel, first, second, template, backwards in mirrored:
        told.append(Motion(template, channel, first, backwards))
        told.append(Motion(backwards, channel, second, template))
    return tuple(told) + tuple(Motion(text, channel, order, text) for channel, order, text in palindromes)


MOTIONS = _motions()
MOTION_CLASSES = tuple(motion.label for motion in MOTIONS)
SCENES = tuple(
    (shape, texture, list(SETTINGS)[(row + column) % 4])
    for row, shape in enumerate(("star", "disc", "square", "cross"))
    for column, texture in enumerate(("striped", "checked", "dotted", "ringed"))
)
SCENE_CLASSES = tuple(f"{texture} {shape} over {setting}" for shape, texture, setting in SCENES)
CLASSES = {"motion": MOTION_CLASSES, "scene": SCENE_CLASSES}


# --- how things move --------------------------------------------------------------------------------------------------


def _triangle(turns: Values) -> Values:
    """A wave that is low at 0 turns, high at a half, and low again at 1."""
    return 1 - np.abs(2 * (turns % 1) - 1)


def _height(time: Values) -> Values:
    """Height of a ball let go at 0 from 1: it lands at 0.4 and bounces, lower each time."""
    height, landed, top, half = np.zeros_like(time), -0.4, 1.0, 0.4
    for _ in range(3):
        arc = (time - landed) / half - 1
        height = np.where(np.abs(arc) <= 1, top * (1 - arc**2), height)
        landed, top, half = landed + 2 * half, 0.42 * top, 0.65 * half
    return height


def visit(order: str, frames: int, rng: Rng, *, shy: bool = False) -> Values:
    """Visits `frames` evenly spaced values in [-1, 1], each once, in the order named; shape [T].

    Whatever the order, the values are the same: that keeps single frames and shuffled frames mute. To go there and
    back, a path takes every second value on its way there and the others on its way back.
    `shy` keeps a sway from beginning near either end, where it would look like a peak or a dip.
    """
    # A quarter frame early or late: no two frames of a wave are equal, and chance says which of its ways is the lower.
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
            edge = 0.09 if shy else 0.0
            path = _triangle(time + rng.uniform(edge, 0.5 - edge) + 0.5 * rng.integers(2))
    if order in ("shrink", "dip"):
        path = -path
    rank = path.argsort(kind="stable").argsort()
    return (2 * rank + 1) / frames - 1


def circle(order: str, frames: int, rng: Rng) -> tuple[Values, Values]:
    """Where a passer is beside the target, in [-1, 1], and whether before it (1) or behind (0); each shape [T].

    The places are those of one round. A class walks that round; a sway swings there and back on either side of the
    target, so that as much of it happens before as behind in both halves of the clip.
    """
    turn = (np.arange(frames) + 0.5) / frames
    walk = np.arange(frames)
    if order == "behind":
        walk = walk[::-1]
    elif order == "sway":
        swing = np.concatenate([walk[: frames // 2 : 2], walk[1 : frames // 2 : 2][::-1]])
        walk = np.roll(np.concatenate([swing, frames - 1 - swing]), frames // 4)
        walk = walk[:: rng.choice([-1, 1])]
        walk = walk if rng.integers(2) else frames - 1 - walk
    return rng.choice([-1, 1]) * np.cos(2 * np.pi * turn)[walk], (turn < 0.5)[walk].astype(float)


def _tracks(orders: dict[str, str], frames: int, size: int, rng: Rng) -> Tracks:
    """Every thing's place in every frame, in pixels and radians."""
    unit = size / 112
    at = {c: visit(orders[c], frames, rng, shy=c in ("across", "gap")) for c in CHANNELS}
    much = dict(zip(CHANNELS, rng.uniform(0.85, 1.15, len(CHANNELS)), strict=True))
    middle = rng.uniform(28, 84, 2) * unit
    radius = rng.uniform(11.5, 16.5) * unit * np.exp(0.3 * much["size"] * at["size"])
    angle = rng.uniform(0, 2 * np.pi) + np.radians(68) * much["angle"] * at["angle"]
    x, y = (m + 22 * unit * much[c] * at[c] for m, c in zip(middle, ("across", "down"), strict=True))

    between = rng.uniform(34, 78, 2) * unit
    while np.hypot(*(between - middle)) < 26 * unit:  # the pair keeps off the target's middle, to be seen
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


# --- one clip ---------------------------------------------------------------------------------------------------------

# The marks that say who is who; nothing else in a picture is as bright.
MAGENTA, CYAN, YELLOW = (np.array(c, np.float32) for c in ((1, 0.1, 0.7), (0, 0.95, 1), (1, 0.9, 0)))


@dataclass(frozen=True)
class Clip:
    """All that is decided about a clip before it is drawn."""

    label: str
    template: str
    names: tuple[str, ...]
    setting: str
    looks: dict[str, Look]
    tracks: Tracks
    """`target` [T, 4]: x, y, radius, angle; in *motion* also `pair` [T, 4]: x, y of one and of the other, and
    `passer` [T, 3]: x, y, 1 before the target or 0 behind it. Pixels, y downwards; radians, clockwise."""


def plan(kind: str, index: int, seed: int, *, frames: int = 16, size: int = 112) -> tuple[Clip, Rng]:
    """Decides everything about clip `index` and hands back the random stream that draws the rest of it."""
    rng = np.random.default_rng([VERSION, list(CLASSES).index(kind), seed, index])
    number = index % len(CLASSES[kind])
    setting = str(rng.choice(list(SETTINGS)))
    if kind == "scene":
        shape, texture, setting = SCENES[number]
        look = random_look(rng, shape=shape, texture=texture)
        tracks = _tracks({c: str(rng.choice(ORDERS)) for c in (*CHANNELS, "way")}, frames, size, rng)
        target = tracks["target"] * [1, 1, 1.4, 1]
        label = SCENE_CLASSES[number]
        return Clip(label, label, (look.name,), setting, {"target": look}, {"target": target}), rng
    motion = MOTIONS[number]
    looks = {
        "target": random_look(rng, outline=MAGENTA, nose=True),
        "one": random_look(rng, outline=CYAN),
        "other": random_look(rng, outline=CYAN),
        "passer": random_look(rng, outline=YELLOW),
    }
    actors = {"gap": ("one", "other"), "way": ("passer", "target")}.get(motion.channel, ("target",))
    orders = dict.fromkeys((*CHANNELS, "way"), "sway") | {motion.channel: motion.order}
    names = tuple(looks[actor].name for actor in actors)
    return Clip(motion.label, motion.template, names, setting, looks, _tracks(orders, frames, size, rng)), rng


def _movers(rng: Rng, frames: int, size: int) -> Iterator[tuple[Look, Values]]:
    """Two to four dull things that go their own ways: look and track [T, 4]."""
    unit = size / 112
    for _ in range(rng.integers(2, 5)):
        x, y, angle = (visit(str(rng.choice(ORDERS)), frames, rng) for _ in range(3))
        middle, reach = rng.uniform(10, 102, 2) * unit, rng.uniform(0, 18, 2) * unit
        radius = np.full(frames, rng.uniform(5, 9) * unit)
        track = np.stack([middle[0] + reach[0] * x, middle[1] + reach[1] * y, radius, rng.uniform(0, 2) * angle])
        yield random_look(rng, dull=True), track.T


def render(
    kind: str, index: int, seed: int, *, frames: int = 16, size: int = 112
) -> tuple[NDArray[np.uint8], str, Tracks]:
    """Draws clip `index` of a seed: pictures [T, H, W, 3] in 8 bits, its class, and where everything was.

    The three depend on the arguments alone. See `Clip.tracks` for the third.
    """
    clip, rng = plan(kind, index, seed, frames=frames, size=size)
    slack = 2 + size // 56
    wall = backdrop(rng, size + 2 * slack, clip.setting, clutter=int(rng.integers(4, 9)))
    shake = rng.integers(-2, 3, (frames, 2)) * size // 112 + slack  # not smooth: shuffled frames must not sort by it
    movers = [draw(look, *track.T) for look, track in _movers(rng, frames, size)]
    tracks = clip.tracks
    things = {"target": draw(clip.looks["target"], *tracks["target"].T)}
    if kind == "motion":
        x, y, radius, angle = tracks["target"].T
        small = np.full(frames, 7.5 * size / 112)
        still = np.zeros(frames)
        things["one"] = draw(clip.looks["one"], *tracks["pair"][:, :2].T, small, still + rng.uniform(0, 6))
        things["other"] = draw(clip.looks["other"], *tracks["pair"][:, 2:].T, small, still + rng.uniform(0, 6))
        things["passer"] = draw(clip.looks["passer"], *tracks["passer"][:, :2].T, 0.55 * radius, still)
    pictures = np.empty((frames, size, size, 3), np.uint8)
    for t, (top, left) in enumerate(shake):
        picture = wall[top : top + size, left : left + size].copy()
        stack = [*movers, *(things[name] for name in _from_the_back(tracks, t))]
        for thing in stack:
            thing.lay(picture, t)
        pictures[t] = picture * 255 + 0.5
    return pictures, clip.label, tracks


def _from_the_back(tracks: Tracks, frame: int) -> tuple[str, ...]:
    if "passer" not in tracks:
        return ("target",)
    return ("target", "passer", "one", "other") if tracks["passer"][frame, 2] else ("passer", "target", "one", "other")


# --- a folder of clips ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SynthSettings:
    """What to make; the same settings always make the same clips."""

    kind: str = "motion"
    """`motion` or `scene`."""
    clips: int = 1000
    seed: int = 0
    frames: int = 16
    """Frames of a clip, 8 a second; even, at least 8."""
    size: int = 112
    """Height and width in pixels; even, at least 32."""
    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    """The share of each split; together 1."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            SttmError: on the first field that cannot be.
        """
        if self.kind not in CLASSES:
            raise SttmError(f"kind is {self.kind!r}, but made videos are of kind {' or '.join(CLASSES)}; choose one.")
        limits = {"clips": (len(CLASSES[self.kind]), 10**7), "seed": (0, 2**63), "frames": (8, 1024), "size": (32, 2048)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                reason = f" (one for each of the {least} classes)" if name == "clips" else ""
                raise SttmError(f"{name} is {value!r}, but must be a whole number from {least}{reason} to {most}; mend it.")
        for name in ("frames", "size"):
            if getattr(self, name) % 2:
                raise SttmError(f"{name} is {getattr(self, name)}, but must be even; add or take away one.")
        shares = (self.train, self.validation, self.test)
        if not (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6):
            raise SttmError(f"train, validation and test are {shares}, but must be 0 or more and add up to 1; mend them.")

    def split(self, index: int) -> str:
        """The split of clip `index`: the first share of the clips is train, the next validation, the last test."""
        if index < round(self.clips * self.train):
            return "train"
        return "validation" if index < round(self.clips * (self.train + self.validation)) else "test"


def video_path(settings: SynthSettings, index: int) -> Path:
    """Where clip `index` lies in its folder: `videos/<id>.mp4`, or as Kinetics files are named."""
    if settings.kind == "motion":
        return Path("videos", f"{index}.mp4")
    label = SCENE_CLASSES[index % len(SCENE_CLASSES)]
    return Path("videos", label, f"{_youtube_id(index)}_{0:06d}_{_seconds(settings):06d}.mp4")


def _youtube_id(index: int) -> str:
    return f"made{index:07d}"  # eleven characters, like theirs


def _seconds(settings: SynthSettings) -> int:
    return -(-settings.frames // FPS)


def encode(pictures_THW3: NDArray[np.uint8], path: Path) -> None:
    """Writes pictures as an h264 mp4 at 8 frames a second; the file appears only when it is whole."""
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as box:
        # One thread, or the bytes depend on the machine. Only key frames, or the first frame would be told from the
        # others by its quality, and shuffled frames would tell where the video began.
        options = {"preset": "veryfast", "crf": "20", "threads": "1", "g": "1"}
        stream = box.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = pictures_THW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures_THW3:
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode())
    part.replace(path)


def _write(folder: Path, settings: SynthSettings, index: int) -> None:
    pictures, _, _ = render(settings.kind, index, settings.seed, frames=settings.frames, size=settings.size)
    encode(pictures, folder / video_path(settings, index))


def make(folder: str | Path, settings: SynthSettings, *, workers: int | None = None, progress: bool = True) -> Path:
    """Makes a folder of clips with their annotations, or goes on where an earlier run of the same settings stopped.

    *motion* is laid out as Something-Something v2 (train.json, validation.json, test.json, test-answers.csv,
    labels.json; videos are .mp4 where the official ones are .webm), *scene* as Kinetics (kinetics_train.csv,
    kinetics_val.csv, kinetics_test.csv). `synth.json` holds the settings, `tracks.jsonl` where everything was.

    Args:
        workers: processes; None is one for each core. The clips do not depend on it.
        progress: a bar on a terminal.

    Raises:
        SttmError: when the folder holds something else, or cannot be written.
    """
    folder = Path(folder)
    try:
        _claim(folder, settings)
        for parent in {(folder / video_path(settings, i)).parent for i in range(len(CLASSES[settings.kind]))}:
            parent.mkdir(parents=True, exist_ok=True)
        missing = [i for i in range(settings.clips) if not (folder / video_path(settings, i)).exists()]
        _run(partial(_write, folder, settings), missing, workers, progress)
        _annotate(folder, settings)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SttmError(f"Cannot write made videos to {str(folder)!r} ({reason}); choose a folder you may write to.") from None
    return folder


def _claim(folder: Path, settings: SynthSettings) -> None:
    """Takes an empty folder, or one of the same settings."""
    note, ours = folder / "synth.json", {"version": VERSION, "fps": FPS, **asdict(settings)}
    folder.mkdir(parents=True, exist_ok=True)
    if note.exists():
        try:
            theirs = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            theirs = None
        if theirs != ours:
            raise SttmError(f"{str(folder)!r} holds videos made with other settings; use the same ones, or a new folder.")
    elif any(folder.iterdir()):
        raise SttmError(f"{str(folder)!r} is not empty and was not made by sttm synth; choose a new or an empty folder.")
    note.write_text(json.dumps(ours, indent=1), encoding="utf-8")


def _run(job: Any, indices: list[int], workers: int | None, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(indices) // 8))
    bar = partial(
        track,
        description="Making videos",
        total=len(indices),
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    )
    if workers <= 1:
        for index in bar(indices):
            job(index)
        return
    # spawn, because a fork of a process whose libraries hold threads may hang
    with get_context("spawn").Pool(workers) as pool:
        for _ in bar(pool.imap_unordered(job, indices, chunksize=8)):
            pass


def _annotate(folder: Path, settings: SynthSettings) -> None:
    plans = [
        plan(settings.kind, i, settings.seed, frames=settings.frames, size=settings.size)[0]
        for i in range(settings.clips)
    ]
    with (folder / "tracks.jsonl").open("w", encoding="utf-8") as lines:
        for index, clip in enumerate(plans):
            tracks = {name: np.round(track, 2).tolist() for name, track in clip.tracks.items()}
            record = {"id": str(index), "video": video_path(settings, index).as_posix(), "label": clip.label, **tracks}
            lines.write(json.dumps(record, separators=(",", ":")) + "\n")
    write = _annotate_motion if settings.kind == "motion" else _annotate_scene
    write(folder, settings, plans)


def _annotate_motion(folder: Path, settings: SynthSettings, plans: list[Clip]) -> None:
    """Writes the layout of Something-Something v2."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    answers = []
    for index, clip in enumerate(plans):
        split = settings.split(index)
        if split == "test":
            rows[split].append({"id": str(index)})
            answers.append(f"{index};{clip.label}\n")
            continue
        label = clip.template
        for name in clip.names:
            label = label.replace("[something]", name, 1) if "[Some" not in label else label.replace("[Something]", name)
        row = {"id": str(index), "label": label, "template": clip.template, "placeholders": list(clip.names)}
        rows[split].append(row)
    for split, entries in rows.items():
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        (folder / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (folder / "test-answers.csv").write_text("".join(answers), encoding="utf-8")
    labels = {label: str(number) for number, label in enumerate(MOTION_CLASSES)}
    (folder / "labels.json").write_text(json.dumps(labels, indent=1), encoding="utf-8")


def _annotate_scene(folder: Path, settings: SynthSettings, plans: list[Clip]) -> None:
    """Writes the layout of Kinetics."""
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        with (folder / f"kinetics_{name}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
            for index, clip in enumerate(plans):
                if settings.split(index) == split:
                    table.writerow((clip.label, _youtube_id(index), 0, _seconds(settings), name))
