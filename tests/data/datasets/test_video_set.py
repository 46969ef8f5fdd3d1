"""Splits: the selected annotations, their classes and files, and one clear sentence for each mistake."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sttm.data.datasets.video_set import read_split
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.synth.clips import SCENE_CLASSES
from sttm.synth.motions import MOTION_CLASSES
from sttm.synth.videos import SynthSettings, make
from tests.data.helpers import data_settings, make_csv_set, make_table, paths_and_classes, touch, write_lines


def test_ut_interaction(shared_data: Path):
    split = {"list": shared_data / "ut-interaction/annotations.csv", "where": {"view": "scene"}}
    data = data_settings(train=split, test=split | {"split": "test"}, without=["other"])
    train, test = read_split(data, "train"), read_split(data, "test")
    assert (len(train.videos), len(test.videos), train.missing) == (83, 37, ())
    assert train.classes == test.classes == ("hug", "kick", "point", "punch", "push", "shake_hands")
    assert all(path.split("/")[1] == name for path, name in paths_and_classes(test, shared_data / "ut-interaction"))
    assert not train.direction_sensitive


def test_splits_share_their_classes_and_choose_their_lines(tmp_path: Path):
    touch(tmp_path, "v/train/run/a.mp4", "v/train/jump/c.mp4", "v/val/jump/d.mp4")
    data = data_settings(train={"list": tmp_path / "v"}, validation={"list": tmp_path / "v"})
    validation = read_split(data, "validation")
    assert paths_and_classes(validation, tmp_path) == [("v/val/jump/d.mp4", "jump")]
    assert validation.classes == read_split(data, "train").classes == ("jump", "run")


def test_test_videos_may_go_without_labels(tmp_path: Path):
    touch(tmp_path, "v/7/00001.jpg", "v/12/00001.jpg")
    train = {"list": write_lines(tmp_path / "l.csv", "7;Swiping Left", "12;Thumb Up")}
    data = data_settings(root=tmp_path / "v", train=train)
    lines = write_lines(tmp_path / "test.csv", "12", "7")
    data = data.model_copy(update={"test": data_settings(test={"list": lines}).test})
    test = read_split(data, "test")
    assert [video.label for video in test.videos] == [None, None]
    assert test.classes == ("Swiping Left", "Thumb Up")
    with pytest.raises(SttmError, match=r"line 1 of .*test\.csv has no label"):
        read_split(
            data_settings(labels=write_lines(tmp_path / "n", "a"), root=tmp_path / "v", train={"list": lines}), "train"
        )


def test_a_file_without_a_suffix_of_videos_is_no_video(tmp_path: Path):
    touch(tmp_path, "7", "7.json", "8.mp4")
    data = data_settings(train={"list": write_lines(tmp_path / "l.csv", "7;a", "8;a")}, max_missing=0.5)
    assert read_split(data, "train").missing == (f"{tmp_path}/7.*",)


@pytest.mark.parametrize("kind", ["motion", "scene"])
def test_synthetic_sets_are_read(kind: str, tmp_path: Path):
    made = SynthSettings(kind=kind, clips=25, frames=8, size=32)
    make(tmp_path, made, workers=1)
    files = {"train": "train.json", "validation": "validation.json", "test": "test-answers.csv"}
    if kind == "scene":
        files = {"train": "kinetics_train.csv", "validation": "kinetics_val.csv", "test": "kinetics_test.csv"}
    lists: dict[str, Any] = {split: {"list": tmp_path / file} for split, file in files.items()}
    labels = {"labels": tmp_path / "labels.json"} if kind == "motion" else {}
    data = data_settings(root=tmp_path / "videos", **labels, **lists)
    truth = {}
    for line in (tmp_path / "tracks.jsonl").read_text().splitlines():
        record = json.loads(line)
        truth[record["video"]] = record["label"]
    seen = []
    for split in ("train", "validation", "test"):
        videos = read_split(data, split)
        assert videos.direction_sensitive == (kind == "motion") and videos.missing == ()
        seen += paths_and_classes(videos, tmp_path)
        (clip,) = videos.videos[-1].read(Sampling(4))
        assert clip.frames_TCHW.shape == (4, 3, 32, 32) and clip.path == videos.videos[-1].path
    assert dict(seen) == truth and len(seen) == 25
    if kind == "motion":
        assert videos.classes == MOTION_CLASSES
        test = data.model_copy(update={"test": data_settings(test={"list": tmp_path / "test.json"}).test})
        assert {video.label for video in read_split(test, "test").videos} == {None}
    else:
        assert videos.classes == tuple(sorted(SCENE_CLASSES))


def test_where_takes_one_value_or_several(tmp_path: Path):
    data = make_table(tmp_path)
    for wanted in ("1", ["0", "2"]):
        chosen = data_settings(root=tmp_path, train={"list": tmp_path / "l.csv", "where": {"fold": wanted}})
        numbers = [int(Path(video.path).stem) for video in read_split(chosen, "train").videos]
        assert numbers == [i for i in range(16) if str(i % 3) in wanted]
    assert len(read_split(data, "train").videos) == 16 and len(read_split(data, "test").videos) == 4


def test_left_out_classes_are_gone_and_the_others_are_renumbered(tmp_path: Path):
    videos = read_split(make_table(tmp_path, without=["run", "HOP"]), "train")
    assert videos.classes == ("sit", "wave")
    assert Counter(video.label for video in videos.videos) == {0: 4, 1: 4}
    assert all(int(Path(video.path).stem) % 4 - 2 == video.label for video in videos.videos)


def test_a_few_missing_videos_are_listed_and_never_replaced(tmp_path: Path):
    data = make_table(tmp_path, there=15, max_missing=0.1)
    videos = read_split(data, "train")
    assert videos.missing == (f"{tmp_path}/v/15.mp4",)
    assert [Path(video.path).stem for video in videos.videos] == [str(i) for i in range(15)]


def test_many_missing_videos_stop(tmp_path: Path):
    data = make_table(tmp_path, there=8)
    share = r"8 of 16 videos of data\.train are missing \(50\.0%\), more than data\.max_missing=0\.05 allows"
    with pytest.raises(SttmError, match=share + rf"; the first is {tmp_path}/v/8\.mp4: set data\.root"):
        read_split(data, "train")
    assert len(read_split(data, "train", tolerant=True).missing) == 8


def test_the_share_of_missing_videos_may_be_reached(tmp_path: Path):
    assert len(read_split(make_table(tmp_path, there=12, max_missing=0.25), "train").missing) == 4
    with pytest.raises(SttmError, match="missing"):
        read_split(make_table(tmp_path, there=12, max_missing=0.2499), "train")


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = make_table(tmp_path)
    listed, scandir = Counter[str](), os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.update([str(path)]) or scandir(path))
    monkeypatch.setattr(
        Path, "exists", lambda path: pytest.fail(f"{path} looked up by itself") if path.suffix == ".mp4" else True
    )
    assert len(read_split(data, "train").videos) == 16
    assert listed == {f"{tmp_path}/v": 1}


def test_a_frame_list_of_video_files_is_refused(tmp_path: Path):
    touch(tmp_path, "a.mp4", "b.mp4")
    data = data_settings(
        labels=write_lines(tmp_path / "n", *"abcd"),
        train={"list": write_lines(tmp_path / "l", "a.mp4 1 3", "b.mp4 2 3")},
    )
    with pytest.raises(
        SttmError, match=r"a\.mp4 is a file, no folder of frames, and line 1 of .* sttm trains on one label"
    ):
        read_split(data, "train")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such list": ({"train": {"list": "nowhere.csv"}}, r"data\.train\.list=nowhere\.csv does not exist"),
    "no such format": ({"train": {"format": "kinetic"}}, r"format 'kinetic'; did you mean kinetics\?"),
    "no such split": ({"train": {"split": "trian"}}, r"no line with split=trian; there are test, train"),
    "no split of that name": (
        {"validation": {}},
        r"has the splits test, train; choose one with data\.validation\.split",
    ),
    "no such column": ({"train": {"where": {"view": "x"}}}, r"has the columns path, label, split, fold but not 'view'"),
    "no such value": ({"train": {"where": {"fold": "7"}}}, r"no line with fold=7; there are 0, 1, 2"),
    "unknown class left out": ({"without": ["wav"]}, r"data\.without has 'wav', no class of .*; did you mean wave\?"),
    "all left out": ({"without": ["hop", "run", "sit", "wave"]}, r"leaves none of the 4 classes"),
    "a label that is no class": (
        {"labels": ["hop", "run", "sit"]},
        r"line 5 of .*l\.csv has the label 'wave', none of the 3",
    ),
    "a class without clips": (
        {"labels": ["hop", "run", "sit", "wave", "fly", "dig"]},
        r"no clip to train on for 'fly', 'dig' of",
    ),
    "a name twice": ({"labels": ["hop", "run", "hop"]}, r"gives 'hop' twice"),
    "no names": ({"labels": []}, r"names no class"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_one_sentence(name: str, tmp_path: Path):
    changes, wanted = WRONG[name]
    make_table(tmp_path)
    changes = {key: dict(value) if isinstance(value, dict) else value for key, value in changes.items()}
    if "labels" in changes:
        changes["labels"] = write_lines(tmp_path / "names.txt", *changes["labels"])
    split = next((key for key in ("train", "validation") if key in changes), "train")
    changes[split] = {"list": tmp_path / "l.csv"} | changes.get(split, {})
    with pytest.raises(SttmError, match=wanted) as error:
        read_split(data_settings(root=tmp_path, **changes), split)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "numbers", "warned"),
    [
        (["1 ant", "2 bee", "3 cat"], "12", "numbers of LIST are read as counting from 0"),
        (["1 0", "2 1", "3 2"], "12", "labels of LIST are read as names of the classes of"),
        (["1 1", "2 2", "3 3"], "12", None),
        (["1 ant", "2 bee", "3 cat"], "02", None),
        (["0 ant", "1 bee", "2 cat"], "12", None),
        (["1 ant", "2 bee", "3 cat"], ["ant", "bee"], None),
    ],
)
def test_numbers_that_may_count_from_1_are_warned_of(labels, numbers, warned, tmp_path: Path, recwarn):
    touch(tmp_path, "0.mp4", "1.mp4")
    listed = write_lines(tmp_path / "l.csv", "path,label", *(f"{i}.mp4,{number}" for i, number in enumerate(numbers)))
    read_split(data_settings(labels=write_lines(tmp_path / "classInd.txt", *labels), test={"list": listed}), "test")
    said = [str(warning.message) for warning in recwarn]
    assert [one.startswith(f"the {warned or ''}".replace("LIST", str(listed))) for one in said] == [True] * bool(warned)


def test_direction_sensitivity_may_be_set_and_is_assumed_where_nothing_has_a_name(tmp_path: Path):
    data = make_table(tmp_path)
    assert not read_split(data, "train").direction_sensitive
    assert read_split(data.model_copy(update={"direction_sensitive": True}), "train").direction_sensitive
    numbers = data_settings(root=tmp_path, train={"list": write_lines(tmp_path / "n.txt", "v/0.mp4 0", "v/1.mp4 1")})
    assert read_split(numbers, "train").direction_sensitive
    assert not read_split(numbers.model_copy(update={"direction_sensitive": False}), "train").direction_sensitive


@pytest.mark.parametrize("path", ["../out.mp4", "a/../../out.mp4", "/etc/out.mp4", "{tmp}/rooted/out.mp4"])
def test_no_path_of_a_list_leaves_a_root_that_is_set(path: str, tmp_path: Path):
    make_csv_set(tmp_path / "root", {"test": 2})
    (tmp_path / "out.mp4").touch()
    listed = write_lines(tmp_path / "list.csv", "path,label", f"{path.format(tmp=tmp_path)},a")
    with pytest.raises(SttmError, match=r"line 2 of .* names .*, which leaves the root .*/root; correct the list"):
        read_split(data_settings(test={"list": listed, "root": tmp_path / "root"}), "test")


def test_a_path_below_the_root_may_be_written_in_any_way(tmp_path: Path):
    make_csv_set(tmp_path / "clips", {"test": 2})
    paths = [str(path) for path in sorted((tmp_path / "clips").rglob("*.mp4"))]
    inside = [f"../clips/{Path(paths[0]).relative_to(tmp_path / 'clips')}", paths[1]]
    listed = write_lines(tmp_path / "list.csv", "path,label", *(f"{path},a" for path in inside))
    assert len(read_split(data_settings(test={"list": listed, "root": tmp_path / "clips"}), "test").videos) == 2
