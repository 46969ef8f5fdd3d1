"""Lists of videos: every real one read whole, every layout led to its files, one sentence for each that is wrong."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sttm.config.settings import DataSettings
from sttm.data.datasets.formats import LAYOUTS, read_listing
from sttm.data.datasets.labels import directions, read_labels
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.video.read import Sampling, read
from sttm.errors import SttmError
from sttm.synth.clips import SCENE_CLASSES
from sttm.synth.motions import MOTION_CLASSES
from sttm.synth.videos import SynthSettings, make


def settings(**sections: Any) -> DataSettings:
    return DataSettings.model_validate(sections)


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def found(videos: VideoSet, root: Path) -> list[tuple[str, str | None]]:
    """Paths from the root with the names of their classes."""
    names = [None if video.label is None else videos.classes[video.label] for video in videos.videos]
    return [(str(Path(v.path).relative_to(root)), name) for v, name in zip(videos.videos, names, strict=True)]


# --- the real files ---------------------------------------------------------------------------------

REAL = {
    "kinetics/kinetics-400_val.csv": "kinetics",
    "kinetics/kinetics-400_test.csv": "kinetics",
    "ssv2/train.sample.json": "ssv2",
    "ssv2/validation.sample.json": "ssv2",
    "ssv2/test.sample.json": "ssv2",
    "ssv2/test-answers.sample.csv": "jester",
    "jester/jester-v1-validation.csv": "jester",
    "jester/jester-v1-test.csv": "jester",
    "ucf101/trainlist01.sample.txt": "ucf101",
    "ucf101/testlist01.sample.txt": "ucf101",
    "videomae/train.sample.csv": "list",
    "mmaction2/video_test_list.txt": "list",
    "mmaction2/rawframe_test_list.txt": "frames",
    "mmaction2/rawframe_test_list_with_offset.txt": "frames",
    "paddlevideo/val_small_videos.list": "list",
    "paddlevideo/val_small_frames.list": "frames",
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_list_is_read_whole(name: str, shared_data: Path):
    path = shared_data / "formats" / name
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    extra = {"kinetics": 1, "ssv2": 2}.get(REAL[name], 0)  # the header; the lines of the two brackets
    listing, layout = read_listing(path, "auto", "data.train")
    assert layout == REAL[name]
    assert len(listing.lines) == len(lines) - extra


def test_every_real_file_is_a_list_or_a_label_map_or_multi_label(shared_data: Path):
    for path in (shared_data / "formats").rglob("*.*"):
        name = str(path.relative_to(shared_data / "formats"))
        if name not in REAL:
            assert re.search(r"label_map|labels|classInd|multi_label", name), name


def test_real_kinetics_lines_name_the_files_that_people_have(shared_data: Path):
    path = shared_data / "formats/kinetics/kinetics-400_val.csv"
    listing, _ = read_listing(path, "auto", "data.validation")
    with path.open(newline="") as file:
        for line, row in zip(listing.lines, csv.DictReader(file), strict=True):
            stem = "{}_{:06d}_{:06d}".format(row["youtube_id"], int(row["time_start"]), int(row["time_end"]))
            assert line.label == row["label"]
            assert line.places[0] == f"{row['label']}/{stem}" and line.places[-1] == stem


def test_real_jester_lines_have_their_labels(shared_data: Path):
    path = shared_data / "formats/jester/jester-v1-validation.csv"
    listing, _ = read_listing(path, "auto", "data.validation")
    assert [f"{line.places[0]};{line.label}" for line in listing.lines] == path.read_text().splitlines()
    classes = read_labels(path.with_name("jester-v1-labels.csv"))
    assert {line.label for line in listing.lines} == set(classes.names)


def test_something_something_drops_the_brackets_only(shared_data: Path):
    names = set(read_labels(shared_data / "formats/mmaction2/sthv2_label_map.txt").names)
    lines = []
    for file in ("train", "validation"):
        listing, _ = read_listing(shared_data / f"formats/ssv2/{file}.sample.json", "auto", "data.train")
        lines += listing.lines
    assert {line.label for line in lines} <= names and len(lines) == 8
    assert "Something falling like a feather or paper" in {line.label for line in lines}


@pytest.mark.parametrize("name", ["rawframe_test_list_multi_label.txt", "video_test_list_multi_label.txt"])
def test_several_labels_a_video_are_refused(name: str, shared_data: Path):
    with pytest.raises(SttmError, match=r"several labels: sttm trains on one label a video"):
        read_listing(shared_data / "formats/mmaction2" / name, "auto", "data.train")


@pytest.mark.parametrize("name", ["mmaction2/label_map_k400.txt", "ucf101/classInd.sample.txt"])
def test_a_file_of_no_known_layout_is_told_them_all(name: str, shared_data: Path):
    with pytest.raises(SttmError, match=r"is in no layout that is known") as error:
        read_listing(shared_data / "formats" / name, "auto", "data.train")
    assert all(f"{layout}: " in str(error.value) for layout in LAYOUTS)


def test_ut_interaction(shared_data: Path):
    split = {"list": shared_data / "ut-interaction/annotations.csv", "where": {"view": "scene"}}
    data = settings(train=split, test=split | {"split": "test"}, without=["other"])
    train, test = read_split(data, "train"), read_split(data, "test")
    assert (len(train.videos), len(test.videos), train.missing) == (83, 37, ())
    assert train.classes == test.classes == ("hug", "kick", "point", "punch", "push", "shake_hands")
    assert all(path.split("/")[1] == name for path, name in found(test, shared_data / "ut-interaction"))
    assert not train.direction_sensitive


# --- each layout leads to its files -----------------------------------------------------------------


def kinetics(root: Path) -> DataSettings:
    touch(root, "v/air drumming/a-_000001_000011.mp4", "v/bee_keeping/_b_000100_000110.webm", "v/c_000000_000010.mkv")
    touch(root, "v/air drumming/c_000000_000010.mp4.part")
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    write(
        root / "l.csv",
        header,
        "air drumming,a-,1,11,train,0",
        '"bee keeping",_b,100,110,train,1',
        "zumba,c,0,10,train,0",
    )
    return settings(root=root / "v", train={"list": root / "l.csv"})


def ssv2(root: Path) -> DataSettings:
    touch(root, "v/7.webm", "v/12.mp4", "v/300/00001.jpg")
    rows = [("7", "Moving [something] up"), ("12", "[Something] falling"), ("300", "Moving [something] up")]
    (root / "l.json").write_text(json.dumps([{"id": i, "template": t, "label": "x"} for i, t in rows]))
    (root / "labels.json").write_text('{"Something falling": "0", "Moving something up": "1"}')
    return settings(root=root / "v", labels=root / "labels.json", train={"list": root / "l.json"})


def jester(root: Path) -> DataSettings:
    touch(root, "v/7/00001.jpg", "v/12/00001.jpg")
    return settings(root=root / "v", train={"list": write(root / "l.csv", "7;Swiping Left", "12;Thumb Up")})


def ucf101(root: Path) -> DataSettings:
    paths = "Archery/v_Archery_g01_c01.avi", "YoYo/v_YoYo_g25_c05.avi"
    touch(root, *(f"v/{path}" for path in paths))
    write(root / "classInd.txt", "1 Archery", "101 YoYo")
    lists = write(root / "l.txt", f"{paths[0]} 1", f"{paths[1]} 101")
    return settings(root=root / "v", labels=root / "classInd.txt", train={"list": lists})


def hmdb51(root: Path) -> DataSettings:
    touch(root, "v/wave/a (1).avi", "v/wave/b.avi", "v/climb_stairs/c.avi", "v/wave/d.avi")
    write(root / "wave_test_split1.txt", "a (1).avi 1 ", "b.avi 2 ", "d.avi 0 ")
    write(root / "climb_stairs_test_split1.txt", "c.avi 1 ")
    write(root / "wave_test_split2.txt", "a (1).avi 2 ", "b.avi 1 ", "d.avi 0 ")
    return settings(root=root / "v", train={"list": root / "*_test_split1.txt"})


def path_and_label(root: Path) -> DataSettings:
    touch(root, "v/a b 3.mp4", "elsewhere/c,d.mp4")
    lines = write(root / "l.csv", "v/a b 3.mp4 1", f"{root}/elsewhere/c,d.mp4 0")
    return settings(root=root, labels=write(root / "names.txt", "jump", "run"), train={"list": lines})


def frames(root: Path) -> DataSettings:
    touch(root, "v/x.mp4/img_00001.jpg", "v/y/img_00001.jpg")
    lines = write(root / "l.txt", "x.mp4 30 1", "y.mp4 20 0")
    return settings(root=root / "v", labels=write(root / "names.txt", "jump", "run"), train={"list": lines})


def table(root: Path) -> DataSettings:
    touch(root, "v/é, a.mp4", "v/b.mp4", "v/c.mp4")
    rows = 'v/c.mp4,run,val,"1"', '"v/é, a.mp4",jump,train,2', "v/b.mp4,run,train,3"
    return settings(root=root, train={"list": write(root / "l.csv", "path,label,split,n", *rows)})


def folders(root: Path) -> DataSettings:
    touch(root, "v/train/run/a.mp4", "v/train/run/deep/b.AVI", "v/train/jump/c/1.jpg", "v/val/jump/d.mp4")
    touch(root, "v/train/run/.hidden.mp4", "v/train/run/notes.txt")
    return settings(train={"list": root / "v"}, validation={"list": root / "v"})


CASES: dict[str, tuple[Callable[[Path], DataSettings], list[tuple[str, str]]]] = {
    "kinetics": (
        kinetics,
        [
            ("v/air drumming/a-_000001_000011.mp4", "air drumming"),
            ("v/bee_keeping/_b_000100_000110.webm", "bee keeping"),
            ("v/c_000000_000010.mkv", "zumba"),
        ],
    ),
    "ssv2": (
        ssv2,
        [("v/7.webm", "Moving something up"), ("v/12.mp4", "Something falling"), ("v/300", "Moving something up")],
    ),
    "jester": (jester, [("v/7", "Swiping Left"), ("v/12", "Thumb Up")]),
    "ucf101": (
        ucf101,
        [("v/Archery/v_Archery_g01_c01.avi", "Archery"), ("v/YoYo/v_YoYo_g25_c05.avi", "YoYo")],
    ),
    "hmdb51": (hmdb51, [("v/climb_stairs/c.avi", "climb_stairs"), ("v/wave/a (1).avi", "wave")]),
    "list": (path_and_label, [("v/a b 3.mp4", "run"), ("elsewhere/c,d.mp4", "jump")]),
    "frames": (frames, [("v/x.mp4", "run"), ("v/y", "jump")]),
    "csv": (table, [("v/é, a.mp4", "jump"), ("v/b.mp4", "run")]),
    "folders": (
        folders,
        [("v/train/jump/c", "jump"), ("v/train/run/a.mp4", "run"), ("v/train/run/deep/b.AVI", "run")],
    ),
}


def test_every_layout_has_a_case():
    assert {*CASES, "shards"} == set(LAYOUTS)  # shards have a file of tests to themselves


@pytest.mark.parametrize("layout", CASES)
def test_a_layout_leads_to_its_files(layout: str, tmp_path: Path):
    build, wanted = CASES[layout]
    data = build(tmp_path)
    videos = read_split(data, "train")
    assert found(videos, tmp_path) == wanted
    assert videos.layout == layout and videos.missing == ()


@pytest.mark.parametrize("layout", CASES)
def test_naming_the_layout_gives_the_same(layout: str, tmp_path: Path):
    data = CASES[layout][0](tmp_path)
    assert data.train is not None
    named = data.model_copy(update={"train": data.train.model_copy(update={"layout": layout})})
    assert read_split(named, "train") == read_split(data, "train")


@pytest.mark.parametrize("layout", ["kinetics", "csv", "jester", "ucf101", "list", "frames"])
def test_line_ends_marks_blanks_and_comments_do_not_matter(layout: str, tmp_path: Path):
    data = CASES[layout][0](tmp_path)
    assert data.train is not None
    plain = read_split(data, "train")
    lines = data.train.list.read_text(encoding="utf-8").splitlines()
    text = "\r\n".join(["# a comment", "", *lines[:2], "", "   ", *lines[2:], ""])
    data.train.list.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_split(data, "train") == plain


def test_splits_share_their_classes_and_choose_their_lines(tmp_path: Path):
    data = folders(tmp_path)
    validation = read_split(data, "validation")
    assert found(validation, tmp_path) == [("v/val/jump/d.mp4", "jump")]
    assert validation.classes == read_split(data, "train").classes == ("jump", "run")


def test_hmdb51_splits_are_not_mixed(tmp_path: Path):
    data = hmdb51(tmp_path)
    both = data.model_copy(update={"train": data.train.model_copy(update={"list": tmp_path})})  # type: ignore[union-attr]
    with pytest.raises(SttmError, match=r"holds the splits 1, 2; choose one: list: .*_test_split1\.txt"):
        read_split(both, "train")
    test = settings(root=tmp_path / "v", test={"list": tmp_path / "*_test_split2.txt"})
    assert found(read_split(test, "test"), tmp_path) == [("v/wave/a (1).avi", "wave")]


def test_test_videos_may_go_without_labels(tmp_path: Path):
    data = jester(tmp_path)
    lines = write(tmp_path / "test.csv", "12", "7")
    data = data.model_copy(update={"test": settings(test={"list": lines}).test})
    test = read_split(data, "test")
    assert [video.label for video in test.videos] == [None, None]
    assert test.classes == ("Swiping Left", "Thumb Up")
    with pytest.raises(SttmError, match=r"line 1 of .*test\.csv has no label"):
        read_split(settings(labels=write(tmp_path / "n", "a"), root=tmp_path / "v", train={"list": lines}), "train")


def test_kinetics_test_csv_has_no_labels(tmp_path: Path):
    data = kinetics(tmp_path)
    lines = write(tmp_path / "t.csv", "youtube_id,time_start,time_end,split", "c,0,10,test")
    data = data.model_copy(update={"test": settings(test={"list": lines}).test})
    assert found(read_split(data, "test"), tmp_path) == [("v/c_000000_000010.mkv", None)]


def test_a_file_without_a_suffix_of_videos_is_no_video(tmp_path: Path):
    touch(tmp_path, "7", "7.json", "8.mp4")
    data = settings(train={"list": write(tmp_path / "l.csv", "7;a", "8;a")}, max_missing=0.5)
    assert read_split(data, "train").missing == (f"{tmp_path}/7.*",)


def test_folders_start_from_themselves_and_keep_their_order(tmp_path: Path):
    touch(tmp_path, *(f"v/run/{name}/a.mp4" for name in "czaxb"))
    data = settings(root="/somewhere/else", train={"list": tmp_path / "v"})
    assert [path for path, _ in found(read_split(data, "train"), tmp_path)] == [f"v/run/{n}/a.mp4" for n in "abcxz"]


def test_a_negative_number_is_no_label(tmp_path: Path):
    touch(tmp_path, "a.mp4")
    data = settings(labels=write(tmp_path / "n", "x"), test={"list": write(tmp_path / "l", "a.mp4 -1")})
    assert [video.label for video in read_split(data, "test").videos] == [None]


def test_no_frames_at_all_are_several_labels(tmp_path: Path):
    with pytest.raises(SttmError, match="several labels"):
        read_listing(write(tmp_path / "l", "a.mp4 0 3", "b.mp4 2 3"), "auto", "data.train")


def test_lists_of_ucf101_from_zero_are_read_by_number(tmp_path: Path):
    ucf101(tmp_path)
    lines = "Archery/v_Archery_g01_c01.avi 1", "YoYo/v_YoYo_g25_c05.avi 0"
    names = write(tmp_path / "names.txt", "toys", "bows")
    data = settings(root=tmp_path / "v", labels=names, train={"list": write(tmp_path / "l.txt", *lines)})
    assert [name for _, name in found(read_split(data, "train"), tmp_path)] == ["bows", "toys"]


names = st.text(st.sampled_from("abcé ü_-.,()7/"), min_size=1, max_size=20).map(lambda text: f"x{text}x.mp4")


@given(
    st.lists(st.tuples(names, st.integers(0, 999)), min_size=1, max_size=20), st.sampled_from([" ", ",", "\t", ", "])
)
def test_path_label_lists_come_back(tmp_path_factory, rows, separator):
    path = write(tmp_path_factory.mktemp("l") / "l.txt", *(f"{name}{separator}{label}" for name, label in rows))
    listing, layout = read_listing(path, "auto", "data.train")
    assert layout == "list"
    assert [(line.places[0], line.label) for line in listing.lines] == rows


# --- made sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["motion", "scene"])
def test_made_sets_are_read(kind: str, tmp_path: Path):
    made = SynthSettings(kind=kind, clips=25, frames=8, size=32)
    make(tmp_path, made, workers=1)
    files = {"train": "train.json", "validation": "validation.json", "test": "test-answers.csv"}
    if kind == "scene":
        files = {"train": "kinetics_train.csv", "validation": "kinetics_val.csv", "test": "kinetics_test.csv"}
    lists: dict[str, Any] = {split: {"list": tmp_path / file} for split, file in files.items()}
    labels = {"labels": tmp_path / "labels.json"} if kind == "motion" else {}
    data = settings(root=tmp_path / "videos", **labels, **lists)
    truth = {}
    for line in (tmp_path / "tracks.jsonl").read_text().splitlines():
        record = json.loads(line)
        truth[record["video"]] = record["label"]
    seen = []
    for split in ("train", "validation", "test"):
        videos = read_split(data, split)
        assert videos.direction_sensitive == (kind == "motion") and videos.missing == ()
        seen += found(videos, tmp_path)
        (clip,) = videos.videos[-1].read(Sampling(4))
        assert clip.frames_TCHW.shape == (4, 3, 32, 32) and clip.path == videos.videos[-1].path
    assert dict(seen) == truth and len(seen) == 25
    if kind == "motion":
        assert videos.classes == MOTION_CLASSES
        test = data.model_copy(update={"test": settings(test={"list": tmp_path / "test.json"}).test})
        assert {video.label for video in read_split(test, "test").videos} == {None}
    else:
        assert videos.classes == tuple(sorted(SCENE_CLASSES))


# --- choosing lines, classes and files ---------------------------------------------------------------


def make_table(root: Path, *, there: int = 20, listed: int = 20, **data: Any) -> DataSettings:
    """Clips 0..listed-1 of four classes in turn, of which the first `there` exist."""
    names = ("hop", "run", "sit", "wave")
    touch(root, *(f"v/{i}.mp4" for i in range(there)))
    rows = (f"v/{i}.mp4,{names[i % 4]},{'train' if i < 16 else 'test'},{i % 3}" for i in range(listed))
    path = write(root / "l.csv", "path,label,split,fold", *rows)
    return settings(root=root, train={"list": path}, test={"list": path}, **data)


def test_where_takes_one_value_or_several(tmp_path: Path):
    data = make_table(tmp_path)
    for wanted in ("1", ["0", "2"]):
        chosen = settings(root=tmp_path, train={"list": tmp_path / "l.csv", "where": {"fold": wanted}})
        numbers = [int(Path(video.path).stem) for video in read_split(chosen, "train").videos]
        assert numbers == [i for i in range(16) if str(i % 3) in wanted]
    assert len(read_split(data, "train").videos) == 16 and len(read_split(data, "test").videos) == 4


def test_left_out_classes_are_gone_and_the_others_count_anew(tmp_path: Path):
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


def test_a_frame_list_of_videos_is_told(tmp_path: Path):
    touch(tmp_path, "a.mp4", "b.mp4")
    data = settings(
        labels=write(tmp_path / "n", *"abcd"), train={"list": write(tmp_path / "l", "a.mp4 1 3", "b.mp4 2 3")}
    )
    with pytest.raises(
        SttmError, match=r"a\.mp4 is a file, no folder of frames, and line 1 of .*: sttm trains on one label"
    ):
        read_split(data, "train")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such list": ({"train": {"list": "nowhere.csv"}}, r"data\.train\.list=nowhere\.csv does not exist"),
    "no such layout": ({"train": {"layout": "kinetic"}}, r"layout=kinetic is none of auto, shards, hmdb51"),
    "no such split": ({"train": {"split": "trian"}}, r"no line with split=trian; there are test, train"),
    "no split of that name": (
        {"validation": {}},
        r"has the splits test, train; choose one with data\.validation\.split",
    ),
    "no such column": ({"train": {"where": {"view": "x"}}}, r"has the columns path, label, split, fold but not 'view'"),
    "no such value": ({"train": {"where": {"fold": "7"}}}, r"no line with fold=7; there are 0, 1, 2"),
    "unknown class left out": ({"without": ["wav"]}, r"data\.without has 'wav', no class of .*; did you mean 'wave'\?"),
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
        changes["labels"] = write(tmp_path / "names.txt", *changes["labels"])
    split = next((key for key in ("train", "validation") if key in changes), "train")
    changes[split] = {"list": tmp_path / "l.csv"} | changes.get(split, {})
    with pytest.raises(SttmError, match=wanted) as error:
        read_split(settings(root=tmp_path, **changes), split)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


BROKEN = {
    "columns": (["video,class", "a.mp4,run"], r"has the columns video, class; wanted are path, label"),
    "kinetics columns": (["label,youtube_id,start", "a,b,1"], r"wanted are youtube_id, time_start, time_end"),
    "kinetics times": (["youtube_id,time_start,time_end", "a,x,1"], r"line 2 of .* has time_start='x'"),
    "cells": (["path,label", "a.mp4,run", "b,c.mp4,run"], r"line 3 of .* has 3 cells where the header has 2"),
    "quotes": (["path,label", '"a.mp4,run'], r"is no csv"),
    "json": (["[{", "]"], r"is not JSON"),
    "label map": (['{"a": "0"}'], r"is JSON, but no list of videos; labels\.json goes to data\.labels"),
    "json without id": (['[{"template": "x"}]'], r'entry 1 of .* has no "id"'),
    "empty": (["", "# nothing"], r"is empty or matches no file"),
    "header only": (["path,label"], r"lists no video"),
    "prose": (["once upon a time", "there was a video"], r"begins with 'once upon a time' and is in no layout"),
    "huge number": (["a.mp4 99999999999"], r"label 99999999999 is no number of a class"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_list_is_one_sentence(name: str, tmp_path: Path):
    lines, wanted = BROKEN[name]
    data = settings(train={"list": write(tmp_path / "l", *lines)})
    with pytest.raises(SttmError, match=wanted) as error:
        read_split(data, "train")
    assert "\n" not in str(error.value)


def test_a_list_that_is_no_text_is_one_sentence(tmp_path: Path):
    (tmp_path / "l").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(SttmError, match=r"is not UTF-8 text"):
        read_split(settings(train={"list": tmp_path / "l"}), "train")


# --- names of classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "hop\nrun\nsit it out\n",
        "\ufeffhop\r\nrun\r\n\r\nsit it out",
        "1 hop\n2 run\n3 sit it out\n",
        "0,hop\n1,run\n2,sit it out\n",
        'id,name\n0,hop\n2,"sit it out"\n1,run\n',
        '{"hop": "0", "sit it out": "2", "run": "1"}',
        '{"\\"hop\\"": 0, "\\"run\\"": 1, "\\"sit it out\\"": 2}',
        '{"0": "hop", "1": "run", "2": "sit it out"}',
        '["hop", "run", "sit it out"]',
    ],
)
def test_label_files_of_all_kinds_say_the_same(text: str, tmp_path: Path):
    (tmp_path / "labels").write_text(text, encoding="utf-8", newline="")
    classes = read_labels(tmp_path / "labels")
    assert classes.names == ("hop", "run", "sit it out")
    assert [classes.place(label) for label in (0, 1, 2, 3, -1)] == [0, 1, 2, None, None]
    assert [classes.place(label) for label in ("hop", "Sit_it_out", "1", "fly")] == [0, 2, 1, None]


def test_real_label_files_keep_their_numbers(shared_data: Path):
    formats = shared_data / "formats"
    something = read_labels(formats / "ssv2/labels.sample.json")
    whole = read_labels(formats / "mmaction2/sthv2_label_map.txt")
    for number in (0, 1, 2, 173):
        place = something.place(number)
        assert place is not None and something.names[place] == whole.names[number]
    index, whole = (
        read_labels(formats / "ucf101/classInd.sample.txt"),
        read_labels(formats / "mmaction2/ucf101_label_map.txt"),
    )
    for number in (0, 1, 2, 98, 99, 100):
        place = index.place(number)
        assert place is not None and index.names[place] == whole.names[number]


def test_names_that_differ_by_a_capital_are_told_apart(tmp_path: Path):
    classes = read_labels(write(tmp_path / "l", "Turn", "turn", "walk away"))
    assert (classes.place("Turn"), classes.place("turn"), classes.place("TURN")) == (0, 1, None)


SENSITIVE = {
    "mmaction2/sthv2_label_map.txt": 7,
    "mmaction2/jester_label_map.txt": 6,
    "jester/jester-v1-labels.csv": 6,
    "mmaction2/label_map_k400.txt": 0,
    "mmaction2/ucf101_label_map.txt": 0,
    "mmaction2/hmdb51_label_map.txt": 0,
}


@pytest.mark.parametrize("name", SENSITIVE)
def test_real_labels_tell_whether_a_mirror_matters(name: str, shared_data: Path):
    """Counted by hand: grep -iwE 'left|right|clockwise|counterclockwise' finds as many."""
    assert len(directions(read_labels(shared_data / "formats" / name).names)) == SENSITIVE[name]


def test_words_of_direction():
    yes = ["SwipeLeft", "turn_right", "Turning counter-clockwise", "from left to right", "Anti Clockwise", "RIGHT"]
    no = [
        "Moving up",
        "Thumb Down",
        "Putting something upright",
        "swimming breast stroke",
        "leftover",
        "bright",
        "clock",
    ]
    assert directions(no + yes) == yes


def test_direction_sensitivity_may_be_set_and_is_assumed_where_nothing_has_a_name(tmp_path: Path):
    data = make_table(tmp_path)
    assert not read_split(data, "train").direction_sensitive
    assert read_split(data.model_copy(update={"direction_sensitive": True}), "train").direction_sensitive
    numbers = settings(root=tmp_path, train={"list": write(tmp_path / "n.txt", "v/0.mp4 0", "v/1.mp4 1")})
    assert read_split(numbers, "train").direction_sensitive
    assert not read_split(numbers.model_copy(update={"direction_sensitive": False}), "train").direction_sensitive


# --- folders of frames ----------------------------------------------------------------------------------


def pictures(folder: Path, numbers: range, *, pattern: str = "img_{:05d}.png", size: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.full((size, size + 2, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / pattern.format(number))


def read_one(root: Path, line: str, sampling: Sampling, **how: Any) -> list[int]:
    """Numbers of the pictures that were read: each is a level of grey."""
    data = settings(labels=write(root / "names.txt", "a"), train={"list": write(root / "l.txt", line)})
    (video,) = read_split(data, "train").videos
    (clip,) = video.read(sampling, **how)
    assert clip.frames_TCHW.shape[1:] == (3, 8, 10) and clip.path == str(root / "x")
    levels = clip.frames_TCHW.flatten(1)
    assert (levels == levels[:, :1]).all()
    return levels[:, 0].tolist()


def test_pictures_are_taken_by_their_numbers(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 13), pattern="img_{}.png")  # 10 would come before 2 by its name
    pictures(tmp_path / "x", range(1, 13), pattern="flow_x_{}.png", size=4)
    assert read_one(tmp_path, "x 12 0", Sampling(12)) == list(range(1, 13))
    assert read_one(tmp_path, "x 9 0", Sampling(3)) == [1, 5, 9]
    assert read_one(tmp_path, "x 2 5 0", Sampling(5)) == [3, 4, 5, 6, 7]
    assert read_one(tmp_path, "x 8 9 0", Sampling(4)) == [9, 10, 11, 12]  # shorter than announced


def test_pictures_of_another_size_are_scaled_to_the_first(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 3))
    pictures(tmp_path / "x", range(3, 5), size=16)
    assert read_one(tmp_path, "x 4 0", Sampling(4)) == [1, 2, 3, 4]


def test_pictures_are_drawn_as_frames_are(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 13))
    drawn = {tuple(read_one(tmp_path, "x 12 0", Sampling(3), draw=np.random.default_rng(seed))) for seed in range(8)}
    assert len(drawn) > 1
    assert all(4 * k < picked <= 4 * (k + 1) for picks in drawn for k, picked in enumerate(picks))
    again = [read_one(tmp_path, "x 12 0", Sampling(3), draw=np.random.default_rng(5)) for _ in range(2)]
    assert again[0] == again[1]


def test_what_is_wrong_with_a_folder_of_pictures_is_one_sentence(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 4))
    with pytest.raises(SttmError, match=r"ends before picture 6"):
        read_one(tmp_path, "x 5 2 0", Sampling(2))
    (tmp_path / "x/img_00002.png").write_bytes(b"no picture")
    with pytest.raises(SttmError, match=r"img_00002\.png is no readable picture"):
        read_one(tmp_path, "x 3 0", Sampling(3))
    whole = (tmp_path / "x/img_00001.png").read_bytes()
    (tmp_path / "x/img_00002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SttmError, match=r"img_00002\.png is"):
        read_one(tmp_path, "x 3 0", Sampling(3))
    pictures(tmp_path / "x", range(1, 4), pattern="depth_{}.png")
    with pytest.raises(SttmError, match=r"holds pictures of 2 series \(depth_, img_\)"):
        read_one(tmp_path, "x 3 0", Sampling(3))


def test_a_real_clip_reads_the_same_as_its_pictures(shared_data: Path, tmp_path: Path):
    """An independent way: the frames of a video, saved without loss and listed as mmaction2 does."""
    path = shared_data / "ut-interaction/scene/hug/set1_10_2_1.mp4"
    (whole,) = read(path, Sampling(20, "dense"))
    folder = tmp_path / "x"
    folder.mkdir()
    for number, frame_CHW in enumerate(whole.frames_TCHW, start=1):
        Image.fromarray(frame_CHW.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    data = settings(labels=write(tmp_path / "n", "a"), train={"list": write(tmp_path / "l", "x 20 0")})
    (clip,) = read_split(data, "train").videos[0].read(Sampling(20))
    assert torch.equal(clip.frames_TCHW, whole.frames_TCHW)
