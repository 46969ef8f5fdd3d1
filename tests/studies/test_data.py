"""Datasets of the studies: splits of their annotations, decoding once, training batches."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sttm.data.datasets.video_set import read_split
from sttm.errors import SttmError
from sttm.synth.clips import CLASSES
from sttm.synth.videos import SynthSettings


def test_clips_are_decoded_once_through_the_data_layer(data: Any, tmp_path: Path) -> None:
    test, train = (data.clip_set("grid_words", split, 48) for split in ("test", "train"))
    assert train.pixels.shape == (2, 16, 3, 48, 48) and train.pixels.dtype == np.uint8
    assert train.names == ("at", "blue") and train.classes.tolist() == [0, 1] and test.classes.tolist() == [1]
    for clips in (train, test):
        assert (clips.mean.item(), clips.std.item()) == pytest.approx((train.pixels.mean(), train.pixels.std()))
    pixels = train.clips(np.arange(2), 16)
    assert pixels.shape == (2, 16, 3, 48, 48) and abs(float(pixels.mean())) < 1e-3
    less_still = train.pixels - train.pixels.mean(1, keepdims=True)
    moving = data.clip_set("grid_words_moving", "train", 48).clips(np.arange(2), 16)
    torch.testing.assert_close(moving, torch.from_numpy(less_still / less_still.std()).float())
    whole, mouth = (data.clip_set(name, "train", 48) for name in ("grid_words", "grid_words_mouth"))
    assert np.array_equal(mouth.pixels, data.clip_set("grid_words", "train", 96).pixels[..., 24:72, 24:72])
    assert not np.array_equal(mouth.pixels, whole.pixels)
    lips = data.clip_set("grid_words_lips", "train", 48)
    assert np.array_equal(lips.pixels, mouth.pixels)
    for clips in (lips, data.clip_set("grid_words_by_channel", "train", 48)):
        even = clips.clips(np.arange(2), 16)
        torch.testing.assert_close(even.mean((0, 1, 3, 4)), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(even.std((0, 1, 3, 4), correction=0), torch.ones(3), rtol=0, atol=1e-4)
    before = train.pixels.copy()
    for clip in (tmp_path / "data").rglob("*.mp4"):
        clip.unlink()
    data.clip_set.cache_clear()
    assert np.array_equal(data.clip_set("grid_words", "train", 48).pixels, before)


def test_letters_are_in_the_set_of_all_words_only(data: Any) -> None:
    assert read_split(data.data_settings("grid_words"), "train").classes == ("at", "blue")
    assert set(read_split(data.data_settings("grid_words_51"), "train").classes) >= {"a", "at", "blue"} - {"b"}


def test_absent_data_is_one_sentence(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SttmError, match="avletters cannot be read; set STTM_DATA"):
        data.data_settings("avletters")
    with pytest.raises(SttmError, match="unknown dataset 'words'; choose one of grid_words"):
        data.data_settings("words")
    monkeypatch.setenv("STTM_DATA", "/nowhere")
    with pytest.raises(SttmError, match="are not at /nowhere; set STTM_DATA"):
        data.data_settings("grid_words")


@pytest.mark.parametrize("mirror", [False, True])
def test_words_are_shifted_but_never_mirrored_or_reversed(study: Any, mirror: bool) -> None:
    data = study("harness.data")
    pixels = np.random.default_rng(0).integers(256, size=(4, 8, 3, 12, 12), dtype=np.uint8)
    clips = data.ClipSet(
        pixels, torch.arange(4), ("a", "b", "c", "d"), torch.zeros(1, 1, 1), torch.ones(1, 1, 1), mirror
    )
    seen = set()
    for step in range(8):
        batch, classes = clips.batch(np.arange(4), 8, np.random.default_rng(step))
        assert classes.tolist() == [0, 1, 2, 3]
        for clip, original in zip(batch, torch.from_numpy(pixels).float(), strict=True):
            shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
            same = any(torch.equal(clip, original.roll(shift, (-2, -1))) for shift in shifts)
            flipped = any(torch.equal(clip.flip(-1), original.roll(shift, (-2, -1))) for shift in shifts)
            assert same != flipped
            seen.add(same)
    assert seen == ({True, False} if mirror else {True})


def test_training_frames_are_drawn_in_order_from_those_kept(study: Any) -> None:
    data = study("harness.data")
    pixels = np.arange(32, dtype=np.uint8)[None, :, None, None, None].repeat(3, axis=2)
    clips = data.ClipSet(pixels, torch.zeros(1, dtype=torch.long), ("a",), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    drawn = [clips.clips(np.arange(1), 16, np.random.default_rng(step))[0, :, 0, 0, 0] for step in range(5)]
    assert all((frames.diff() > 0).all() for frames in drawn) and len({tuple(frames.tolist()) for frames in drawn}) > 1
    assert clips.clips(np.arange(1), 16)[0, :, 0, 0, 0].tolist() == list(range(1, 32, 2))
    assert clips.clips(np.arange(1), 5)[0, :, 0, 0, 0].tolist() == [3, 9, 16, 22, 28]
    with pytest.raises(SttmError, match="give at most 32"):
        clips.clips(np.arange(1), 33)


@pytest.mark.parametrize(
    ("name", "sizes", "group"),
    [
        ("grid_words", (3570, 410, 1020), ("sentence",)),
        ("grid_words_51", (4284, 492, 1224), ("sentence",)),
        ("avletters", (468, 52, 260), ("speaker", "repetition")),
        ("ut_interaction", (201, 12, 37), ("sequence",)),
    ],
)
def test_splits_share_no_group(
    name: str, sizes: tuple[int, ...], group: tuple[str, ...], study: Any, shared_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = study("harness.data")
    monkeypatch.setattr(data, "CACHE", tmp_path)
    settings = data.data_settings(name)
    sets = [read_split(settings, split) for split in data.SPLITS]
    assert tuple(len(found.videos) for found in sets) == sizes
    assert len({found.classes for found in sets}) == 1
    assert sets[0].direction_sensitive != data.DATASETS[name].mirror
    folder = shared_data / data.DATASETS[name].folder
    with (folder / "annotations.csv").open(newline="") as file:
        rows = {str(folder / row["path"]): row for row in csv.DictReader(file)}
    groups = [{tuple(rows[video.path][key] for key in group) for video in found.videos} for found in sets]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.parametrize("kind", ["motion", "scene"])
def test_synthetic_datasets_are_made_and_read_back(data: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SynthSettings(kind=kind, clips=40, seed=0, frames=16, size=48, train=0.5, validation=0.25, test=0.25)
    wanted = replace(data.DATASETS[kind], synthetic=small)
    monkeypatch.setitem(data.DATASETS, kind, wanted)
    sets = [data.clip_set(kind, split, 48) for split in data.SPLITS]
    assert [len(found) for found in sets] == [20, 10, 10]
    assert (
        all(sorted(found.names) == sorted(CLASSES[kind]) for found in sets) and len(set(sets[0].classes.tolist())) > 10
    )
    settings = data.data_settings(kind)
    assert read_split(settings, "train").direction_sensitive == (kind == "motion")
