"""Synthetic videos: the same everywhere, in the formats of the official sets, and no single frame tells the class."""

import csv
import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from sttm.errors import SttmError
from sttm.synth.clips import SCENE_CLASSES, design, render
from sttm.synth.motions import CHANNELS, MOTION_CLASSES, MOTIONS, ORDERS, circle, visit
from sttm.synth.videos import SynthSettings, encode, make, video_path

SMALL = {"frames": 8, "size": 32}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SynthSettings("motion", clips=40, **SMALL)
    return make(tmp_path_factory.mktemp("motion"), settings, workers=1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SynthSettings("scene", clips=40, **SMALL)
    return make(tmp_path_factory.mktemp("scene"), settings, workers=1)


def test_workers_and_interruptions_change_nothing(motion: Path, tmp_path: Path) -> None:
    settings = SynthSettings("motion", clips=40, **SMALL)
    make(tmp_path, settings, workers=2)
    assert digests(tmp_path) == digests(motion)
    for lost in ("videos/3.mp4", "train.json"):
        (tmp_path / lost).unlink()
    kept = (tmp_path / "videos/4.mp4").stat().st_mtime_ns
    make(tmp_path, settings, workers=1)
    assert digests(tmp_path) == digests(motion)
    assert (tmp_path / "videos/4.mp4").stat().st_mtime_ns == kept


def test_a_clip_does_not_depend_on_how_many_are_made(motion: Path, tmp_path: Path) -> None:
    make(tmp_path, SynthSettings("motion", clips=20, **SMALL), workers=1)
    assert (tmp_path / "videos/7.mp4").read_bytes() == (motion / "videos/7.mp4").read_bytes()
    frames = {render("motion", 7, seed, **SMALL)[0].tobytes() for seed in range(3)}
    frames |= {render("motion", 7 + 18, 0, **SMALL)[0].tobytes()}
    assert len(frames) == 4


def test_videos_hold_what_was_drawn(motion: Path, scene: Path) -> None:
    for kind, folder in (("motion", motion), ("scene", scene)):
        path = folder / video_path(SynthSettings(kind, clips=40, **SMALL), 5)
        with av.open(str(path)) as box:
            stream = box.streams.video[0]
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in box.decode(stream)])
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate is not None and int(stream.average_rate) == 8
        drawn, _, _ = render(kind, 5, 0, **SMALL)
        assert decoded.shape == drawn.shape == (8, 32, 32, 3)
        error, backwards = (np.abs(decoded.astype(float) - other).mean() for other in (drawn, drawn[::-1]))
        assert error < min(12, backwards)


def test_motion_is_laid_out_as_something_something(motion: Path) -> None:
    labels = json.loads((motion / "labels.json").read_text())
    assert labels == {label: str(number) for number, label in enumerate(MOTION_CLASSES)}
    told = {}
    for split, count in (("train", 32), ("validation", 4)):
        rows = json.loads((motion / f"{split}.json").read_text())
        assert len(rows) == count
        for row in rows:
            assert list(row) == ["id", "label", "template", "placeholders"]
            assert row["template"].lower().count("[something]") == len(row["placeholders"])
            filled = row["template"].lower()
            for name in row["placeholders"]:
                filled = filled.replace("[something]", name, 1)
            assert row["label"] == filled
            told[row["id"]] = row["template"].replace("[", "").replace("]", "")
    test_ids = [row["id"] for row in json.loads((motion / "test.json").read_text())]
    answers = dict(line.split(";") for line in (motion / "test-answers.csv").read_text().splitlines())
    assert test_ids == list(answers) and not set(answers) & set(told)
    told |= answers
    assert set(told.values()) <= set(labels)
    assert {path.stem for path in (motion / "videos").iterdir()} == set(told)
    tracks = [json.loads(line) for line in (motion / "tracks.jsonl").read_text().splitlines()]
    assert {track["id"]: track["label"] for track in tracks} == told
    assert all(np.shape(track["target"]) == (8, 4) for track in tracks)


def test_scene_is_laid_out_as_kinetics(scene: Path) -> None:
    found = set()
    for split, count in (("train", 32), ("val", 4), ("test", 4)):
        with (scene / f"kinetics_{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        for row in rows:
            assert list(row) == ["label", "youtube_id", "time_start", "time_end", "split"]
            assert row["split"] == split and row["label"] in SCENE_CLASSES and len(row["youtube_id"]) == 11
            start, end = int(row["time_start"]), int(row["time_end"])
            found.add(scene / "videos" / row["label"] / f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4")
    assert found == set(scene.rglob("*.mp4"))


@pytest.mark.parametrize("kind", ["motion", "scene"])
def test_classes_are_balanced_in_every_split(kind: str) -> None:
    settings = SynthSettings(kind, clips=500)
    classes = MOTION_CLASSES if kind == "motion" else SCENE_CLASSES
    assert len(classes) == len(set(classes)) >= 16
    counts: dict[str, dict[str, int]] = {}
    for index in range(settings.clips):
        label = design(kind, index, 0)[0].label
        per_split = counts.setdefault(settings.split(index), dict.fromkeys(classes, 0))
        per_split[label] += 1
    assert {split: sum(c.values()) for split, c in counts.items()} == {
        "train": 400,
        "validation": 50,
        "test": 50,
    }
    assert all(max(c.values()) - min(c.values()) <= 1 for c in counts.values())


@pytest.mark.parametrize("frames", [8, 10, 16, 32])
def test_every_order_visits_the_same_values(frames: int) -> None:
    rng = np.random.default_rng(0)
    even = np.linspace(-1 + 1 / frames, 1 - 1 / frames, frames)
    for order in ORDERS * 5:
        np.testing.assert_allclose(np.sort(visit(order, frames, rng)), even)
    orders = ["behind", "before"] + ["sway"] * 9
    places = {tuple(sorted(zip(*np.round(circle(o, frames, rng), 9), strict=True))) for o in orders}
    assert len(places) == 1


def test_backwards_is_the_partner_class() -> None:
    by_template = {motion.template: motion for motion in MOTIONS}
    rng = np.random.default_rng(0)
    for motion in MOTIONS:
        partner = by_template[motion.backwards]
        assert partner.backwards == motion.template and partner.channel == motion.channel
        if motion.channel == "way":
            one, other = (circle(m.order, 16, rng)[1] for m in (motion, partner))
        else:
            one, other = (visit(m.order, 16, rng) for m in (motion, partner))
        assert np.abs(one[::-1] - other).max() <= 4 / 16  # a wave may come back over the values it left out
    assert sum(motion.backwards != motion.template for motion in MOTIONS) >= 14


def test_what_the_class_says_is_what_happens() -> None:
    def first_to_last(label: str) -> dict[str, float]:
        clip, _ = design("motion", MOTION_CLASSES.index(label), 0)
        x, y, radius, angle = clip.tracks["target"].T
        a, b = clip.tracks["pair"][:, :2], clip.tracks["pair"][:, 2:]
        gap = np.hypot(*(a - b).T)
        return {c: track[-1] - track[0] for c, track in zip(CHANNELS, (x, y, radius, angle, gap), strict=True)}

    assert first_to_last("Moving something left")["across"] < -30
    assert first_to_last("Moving something right")["across"] > 30
    assert first_to_last("Moving something up")["down"] < -30  # y grows downwards
    assert first_to_last("Something falling and bouncing")["down"] > 30
    assert first_to_last("Moving something closer to the camera")["size"] > 5
    assert first_to_last("Turning something clockwise")["angle"] > np.pi / 2
    assert first_to_last("Moving something and something closer to each other")["gap"] < -25


def channels(index: int) -> np.ndarray:
    """What a perfect eye sees: every channel of one clip, roughly in units of its reach; shape [T, 7]."""
    tracks = design("motion", index, 0)[0].tracks
    x, y, radius, angle = tracks["target"].T
    pair, passer = tracks["pair"], tracks["passer"]
    gap = np.hypot(*(pair[:, 2:] - pair[:, :2]).T)
    beside = (passer[:, 0] - x) / radius
    seen = [(x - 56) / 22, (y - 56) / 22, np.log(radius / 14) / 0.3, angle + 1.5, (gap - 43) / 20, beside]
    return np.stack([*seen, 2 * passer[:, 2] - 1], axis=1)


def test_a_perfect_eye_needs_the_order() -> None:
    clips, labels = np.stack([channels(i) for i in range(1800)]), np.arange(1800) % len(MOTIONS)
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(clip) for clip in clips])

    def accuracy(features: np.ndarray) -> float:
        """Ridge regression onto the classes, with products of features: top-1 on the last third."""
        flat = features.reshape(len(features), -1)
        wide = np.concatenate([flat, flat**2, np.ones((len(flat), 1))], axis=1)
        train, goal = wide[:1200], np.eye(len(MOTIONS))[labels[:1200]]
        weights = np.linalg.solve(train.T @ train + 3 * np.eye(wide.shape[1]), train.T @ goal)
        return float(((wide[1200:] @ weights).argmax(1) == labels[1200:]).mean())

    chance = 1 / len(MOTIONS)
    spread = np.stack([np.concatenate([c.mean(0), c.var(0)]) for c in shuffled])
    together = np.stack([np.cov(c.T).ravel() for c in shuffled])
    assert accuracy(clips) > 0.9
    assert accuracy(shuffled[:, :1]) < 2 * chance
    assert accuracy(shuffled) < 2 * chance
    assert accuracy(spread) < 2 * chance
    # What moves with what is the one thing a heap of frames still whispers, to an eye that measures exactly.
    assert accuracy(together) < 5.5 * chance


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "music"}, "unknown kind 'music'; choose motion or scene"),
        ({"clips": 0}, "clips is 0"),
        ({"clips": 17}, "one for each of the 18 classes"),
        ({"clips": 20.5}, "clips is 20.5"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 33}, "even"),
        ({"size": 30}, "size is 30"),
        ({"frames": 7}, "frames is 7"),
        ({"train": 0.9}, "add up to 1"),
        ({"train": float("nan")}, "add up to 1"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(SttmError, match=says):
        SynthSettings(**wrong)  # type: ignore[arg-type]


def test_folders_that_cannot_be(motion: Path, tmp_path: Path) -> None:
    settings = SynthSettings("motion", clips=20, **SMALL)
    with pytest.raises(SttmError, match="other settings"):
        make(motion, settings)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SttmError, match="not empty"):
        make(tmp_path / "full", settings)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    for hopeless in (tmp_path / "full" / "thesis.txt", tmp_path / "full" / "thesis.txt" / "deeper"):
        with pytest.raises(SttmError, match="cannot be written"):
            make(hopeless, settings)
    with pytest.raises(SttmError, match="cannot be written"):
        make(Path("/proc/made"), settings)


def test_a_video_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path: Path):
    (taken := tmp_path / "a.mp4").mkdir()
    (taken / "x").touch()
    with pytest.raises(OSError, match="directory"):
        encode(np.zeros((2, 32, 32, 3), np.uint8), taken)
    assert list(tmp_path.iterdir()) == [taken]
