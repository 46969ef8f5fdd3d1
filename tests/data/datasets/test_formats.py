"""Annotation formats: every real file is read whole, every registered format finds its files."""

import csv
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttm.config.sections import DataSettings
from sttm.data.datasets.formats import FORMATS, read_annotations
from sttm.data.datasets.labels import read_labels
from sttm.data.datasets.video_set import read_split
from sttm.errors import SttmError
from tests.data.helpers import (
    data_settings,
    paths_and_classes,
    touch,
    write_lines,
)

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
    listed, found = read_annotations(path, "auto", "data.train")
    assert found == REAL[name]
    assert len(listed.annotations) == len(lines) - extra


def test_every_real_file_is_a_list_or_a_label_map_or_multi_label(shared_data: Path):
    for path in (shared_data / "formats").rglob("*.*"):
        name = str(path.relative_to(shared_data / "formats"))
        if name not in REAL:
            assert re.search(r"label_map|labels|classInd|multi_label", name), name


def test_real_kinetics_lines_name_the_files_that_people_have(shared_data: Path):
    path = shared_data / "formats/kinetics/kinetics-400_val.csv"
    listed, _ = read_annotations(path, "auto", "data.validation")
    with path.open(newline="") as file:
        for line, row in zip(listed.annotations, csv.DictReader(file), strict=True):
            stem = "{}_{:06d}_{:06d}".format(row["youtube_id"], int(row["time_start"]), int(row["time_end"]))
            assert line.label == row["label"]
            assert line.paths[0] == f"{row['label']}/{stem}" and line.paths[-1] == stem


def test_real_jester_lines_have_their_labels(shared_data: Path):
    path = shared_data / "formats/jester/jester-v1-validation.csv"
    listed, _ = read_annotations(path, "auto", "data.validation")
    assert [f"{line.paths[0]};{line.label}" for line in listed.annotations] == path.read_text().splitlines()
    classes = read_labels(path.with_name("jester-v1-labels.csv"))
    assert {line.label for line in listed.annotations} == set(classes.names)


def test_something_something_drops_the_brackets_only(shared_data: Path):
    names = set(read_labels(shared_data / "formats/mmaction2/sthv2_label_map.txt").names)
    lines = []
    for file in ("train", "validation"):
        listed, _ = read_annotations(shared_data / f"formats/ssv2/{file}.sample.json", "auto", "data.train")
        lines += listed.annotations
    assert {line.label for line in lines} <= names and len(lines) == 8
    assert "Something falling like a feather or paper" in {line.label for line in lines}


@pytest.mark.parametrize("name", ["rawframe_test_list_multi_label.txt", "video_test_list_multi_label.txt"])
def test_several_labels_a_video_are_refused(name: str, shared_data: Path):
    with pytest.raises(SttmError, match=r"several labels, but sttm trains on one label a video"):
        read_annotations(shared_data / "formats/mmaction2" / name, "auto", "data.train")


@pytest.mark.parametrize("name", ["mmaction2/label_map_k400.txt", "ucf101/classInd.sample.txt"])
def test_the_error_for_an_unknown_format_names_them_all(name: str, shared_data: Path):
    with pytest.raises(SttmError, match=r"is in no known format") as error:
        read_annotations(shared_data / "formats" / name, "auto", "data.train")
    assert all(f"{name}: " in str(error.value) for name in FORMATS)


def kinetics(root: Path) -> DataSettings:
    touch(root, "v/air drumming/a-_000001_000011.mp4", "v/bee_keeping/_b_000100_000110.webm", "v/c_000000_000010.mkv")
    touch(root, "v/air drumming/c_000000_000010.mp4.part")
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    write_lines(
        root / "l.csv",
        header,
        "air drumming,a-,1,11,train,0",
        '"bee keeping",_b,100,110,train,1',
        "zumba,c,0,10,train,0",
    )
    return data_settings(root=root / "v", train={"list": root / "l.csv"})


def ssv2(root: Path) -> DataSettings:
    touch(root, "v/7.webm", "v/12.mp4", "v/300/00001.jpg")
    rows = [("7", "Moving [something] up"), ("12", "[Something] falling"), ("300", "Moving [something] up")]
    (root / "l.json").write_text(json.dumps([{"id": i, "template": t, "label": "x"} for i, t in rows]))
    (root / "labels.json").write_text('{"Something falling": "0", "Moving something up": "1"}')
    return data_settings(root=root / "v", labels=root / "labels.json", train={"list": root / "l.json"})


def diving48(root: Path) -> DataSettings:
    touch(root, "v/-mm_00155.mp4", "v/_8V_00000.mp4", "v/2x0_00003/00001.jpg")
    rows = [("-mm_00155", 2), ("_8V_00000", 0), ("2x0_00003", 1)]
    entries = [{"vid_name": name, "label": label, "start_frame": 0, "end_frame": 90} for name, label in rows]
    (root / "l.json").write_text(json.dumps(entries))
    names = [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"], ["Inward", "Dive", "PIKE"]]
    (root / "Diving48_vocab.json").write_text(json.dumps(names))
    return data_settings(root=root / "v", labels=root / "Diving48_vocab.json", train={"list": root / "l.json"})


def jester(root: Path) -> DataSettings:
    touch(root, "v/7/00001.jpg", "v/12/00001.jpg")
    return data_settings(root=root / "v", train={"list": write_lines(root / "l.csv", "7;Swiping Left", "12;Thumb Up")})


def ucf101(root: Path) -> DataSettings:
    paths = "Archery/v_Archery_g01_c01.avi", "YoYo/v_YoYo_g25_c05.avi"
    touch(root, *(f"v/{path}" for path in paths))
    write_lines(root / "classInd.txt", "1 Archery", "101 YoYo")
    lists = write_lines(root / "l.txt", f"{paths[0]} 1", f"{paths[1]} 101")
    return data_settings(root=root / "v", labels=root / "classInd.txt", train={"list": lists})


def hmdb51(root: Path) -> DataSettings:
    touch(root, "v/wave/a (1).avi", "v/wave/b.avi", "v/climb_stairs/c.avi", "v/wave/d.avi")
    write_lines(root / "wave_test_split1.txt", "a (1).avi 1 ", "b.avi 2 ", "d.avi 0 ")
    write_lines(root / "climb_stairs_test_split1.txt", "c.avi 1 ")
    write_lines(root / "wave_test_split2.txt", "a (1).avi 2 ", "b.avi 1 ", "d.avi 0 ")
    return data_settings(root=root / "v", train={"list": root / "*_test_split1.txt"})


def path_and_label(root: Path) -> DataSettings:
    touch(root, "v/a b 3.mp4", "elsewhere/c,d.mp4")
    lines = write_lines(root / "l.csv", "v/a b 3.mp4 1", f"{root}/elsewhere/c,d.mp4 0")
    return data_settings(root=root, labels=write_lines(root / "names.txt", "jump", "run"), train={"list": lines})


def frames(root: Path) -> DataSettings:
    touch(root, "v/x.mp4/img_00001.jpg", "v/y/img_00001.jpg")
    lines = write_lines(root / "l.txt", "x.mp4 30 1", "y.mp4 20 0")
    return data_settings(root=root / "v", labels=write_lines(root / "names.txt", "jump", "run"), train={"list": lines})


def table(root: Path) -> DataSettings:
    touch(root, "v/é, a.mp4", "v/b.mp4", "v/c.mp4")
    rows = 'v/c.mp4,run,val,"1"', '"v/é, a.mp4",jump,train,2', "v/b.mp4,run,train,3"
    return data_settings(root=root, train={"list": write_lines(root / "l.csv", "path,label,split,n", *rows)})


def folders(root: Path) -> DataSettings:
    touch(root, "v/train/run/a.mp4", "v/train/run/deep/b.AVI", "v/train/jump/c/1.jpg", "v/val/jump/d.mp4")
    touch(root, "v/train/run/.hidden.mp4", "v/train/run/notes.txt")
    return data_settings(train={"list": root / "v"}, validation={"list": root / "v"})


def shards(root: Path) -> DataSettings:
    touch(root, "a.mp4", "b.webm")
    with tarfile.open(root / "s-0.tar", "w") as tar:
        for key, suffix, label in (("b", "webm", "run"), ("a", "mp4", "jump")):
            tar.add(root / f"{key}.{suffix}", f"{key}.{suffix}")
            tar.add(write_lines(root / f"{key}.cls", label), f"{key}.cls")
    return data_settings(train={"list": root / "s-*.tar"})


EXAMPLES: dict[str, tuple[Callable[[Path], DataSettings], list[tuple[str, str]]]] = {
    "shards": (shards, [("s-0.tar/b", "run"), ("s-0.tar/a", "jump")]),
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
    "diving48": (
        diving48,
        [
            ("v/-mm_00155.mp4", "Inward Dive PIKE"),
            ("v/_8V_00000.mp4", "Back 15som 05Twis FREE"),
            ("v/2x0_00003", "Back 15som 15Twis FREE"),
        ],
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


def test_a_scan_of_folders_says_what_it_skipped(tmp_path: Path):
    touch(tmp_path, "v/readme.md", "v/loose.mp4", "v/train/run/a.mp4", "v/train/run/b.jpg", "v/train/.DS_Store")
    touch(tmp_path, "v/train/run/c/1.png", "v/train/run/c/1.xml", "v/train/list.txt")
    data = data_settings(train={"list": tmp_path / "v"})
    told = r"skipped 5 files that cannot be read as videos: loose\.mp4, readme\.md, train/list\.txt and 2 more$"
    with pytest.warns(UserWarning, match=told):
        videos = read_split(data, "train")
    assert videos.skipped == ("loose.mp4", "readme.md", "train/list.txt", "train/run/b.jpg", "train/run/c/1.xml")
    assert len(videos.videos) == 2


@pytest.mark.filterwarnings("ignore:.*skipped 1 file that:UserWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_a_registered_format_finds_its_files(name: str, tmp_path: Path):
    assert name in EXAMPLES, "a new format needs an example here"
    build, wanted = EXAMPLES[name]
    videos = read_split(build(tmp_path), "train")
    assert paths_and_classes(videos, tmp_path) == wanted
    assert videos.format == name and videos.missing == ()


@pytest.mark.filterwarnings("ignore:.*skipped 1 file that:UserWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_naming_the_format_changes_nothing(name: str, tmp_path: Path):
    data = EXAMPLES[name][0](tmp_path)
    assert data.train is not None
    named = data.model_copy(update={"train": data.train.model_copy(update={"format": name})})
    assert read_split(named, "train") == read_split(data, "train")


@pytest.mark.parametrize("name", ["kinetics", "csv", "jester", "ucf101", "list", "frames"])
def test_line_ends_marks_blanks_and_comments_do_not_matter(name: str, tmp_path: Path):
    data = EXAMPLES[name][0](tmp_path)
    assert data.train is not None
    plain = read_split(data, "train")
    lines = data.train.list.read_text(encoding="utf-8").splitlines()
    text = "\r\n".join(["# a comment", "", *lines[:2], "", "   ", *lines[2:], ""])
    data.train.list.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_split(data, "train") == plain


def test_hmdb51_splits_are_not_mixed(tmp_path: Path):
    data = hmdb51(tmp_path)
    both = data.model_copy(update={"train": data.train.model_copy(update={"list": tmp_path})})  # type: ignore[union-attr]
    with pytest.raises(SttmError, match=r"holds the splits 1, 2; choose one: list: .*_test_split1\.txt"):
        read_split(both, "train")
    test = data_settings(root=tmp_path / "v", test={"list": tmp_path / "*_test_split2.txt"})
    assert paths_and_classes(read_split(test, "test"), tmp_path) == [("v/wave/a (1).avi", "wave")]


def test_kinetics_test_csv_has_no_labels(tmp_path: Path):
    data = kinetics(tmp_path)
    lines = write_lines(tmp_path / "t.csv", "youtube_id,time_start,time_end,split", "c,0,10,test")
    data = data.model_copy(update={"test": data_settings(test={"list": lines}).test})
    assert paths_and_classes(read_split(data, "test"), tmp_path) == [("v/c_000000_000010.mkv", None)]


def test_folders_start_from_themselves_and_keep_their_order(tmp_path: Path):
    touch(tmp_path, *(f"v/run/{name}/a.mp4" for name in "czaxb"))
    data = data_settings(root="/somewhere/else", train={"list": tmp_path / "v"})
    assert [path for path, _ in paths_and_classes(read_split(data, "train"), tmp_path)] == [
        f"v/run/{n}/a.mp4" for n in "abcxz"
    ]


def test_a_negative_number_is_no_label(tmp_path: Path):
    touch(tmp_path, "a.mp4")
    data = data_settings(
        labels=write_lines(tmp_path / "n", "x"), test={"list": write_lines(tmp_path / "l", "a.mp4 -1")}
    )
    assert [video.label for video in read_split(data, "test").videos] == [None]


def test_a_frame_count_of_zero_means_several_labels(tmp_path: Path):
    with pytest.raises(SttmError, match="several labels"):
        read_annotations(write_lines(tmp_path / "l", "a.mp4 0 3", "b.mp4 2 3"), "auto", "data.train")


def test_lists_of_ucf101_from_zero_are_read_by_number(tmp_path: Path):
    ucf101(tmp_path)
    lines = "Archery/v_Archery_g01_c01.avi 1", "YoYo/v_YoYo_g25_c05.avi 0"
    names = write_lines(tmp_path / "names.txt", "toys", "bows")
    data = data_settings(root=tmp_path / "v", labels=names, train={"list": write_lines(tmp_path / "l.txt", *lines)})
    assert [name for _, name in paths_and_classes(read_split(data, "train"), tmp_path)] == ["bows", "toys"]


names = st.text(st.sampled_from("abcé ü_-.,()7/"), min_size=1, max_size=20).map(lambda text: f"x{text}x.mp4")


@given(
    st.lists(st.tuples(names, st.integers(0, 999)), min_size=1, max_size=20), st.sampled_from([" ", ",", "\t", ", "])
)
def test_path_label_lists_come_back(tmp_path_factory, rows, separator):
    path = write_lines(tmp_path_factory.mktemp("l") / "l.txt", *(f"{name}{separator}{label}" for name, label in rows))
    listed, found = read_annotations(path, "auto", "data.train")
    assert found == "list"
    assert [(line.paths[0], line.label) for line in listed.annotations] == rows


BROKEN = {
    "columns": (["video,class", "a.mp4,run"], r"has the columns video, class but needs path, label"),
    "kinetics columns": (["label,youtube_id,start", "a,b,1"], r"but needs youtube_id, time_start, time_end"),
    "kinetics times": (["youtube_id,time_start,time_end", "a,x,1"], r"line 2 of .* has time_start='x'"),
    "cells": (["path,label", "a.mp4,run", "b,c.mp4,run"], r"line 3 of .* has 3 cells where the header has 2"),
    "quotes": (["path,label", '"a.mp4,run'], r"is no csv"),
    "json": (["[{", "]"], r"is not valid JSON"),
    "label map": (['{"a": "0"}'], r"is JSON, but no list of videos; labels\.json goes to data\.labels"),
    "json without id": (['[{"template": "x"}]'], r'entry 1 of .* has no "id"'),
    "dive without name": (['[{"vid_name": "a", "label": 1}, {"label": 1}]'], r'entry 2 of .* has no "vid_name"'),
    "dive by name": (['[{"vid_name": "a", "label": "Back"}]'], r"has the label 'Back'; give the number of a class"),
    "empty": (["", "# nothing"], r"is empty or matches no file"),
    "header only": (["path,label"], r"lists no video"),
    "prose": (["once upon a time", "there was a video"], r"begins with 'once upon a time' and is in no known format"),
    "huge number": (["a.mp4 99999999999"], r"label 99999999999 is no class's number"),
    "endless number": (["a.mp4 0", f"b.mp4 {'9' * 5000}"], r"is in no known format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_list_is_one_sentence(name: str, tmp_path: Path):
    lines, wanted = BROKEN[name]
    data = data_settings(train={"list": write_lines(tmp_path / "l", *lines)})
    with pytest.raises(SttmError, match=wanted) as error:
        read_split(data, "train")
    assert "\n" not in str(error.value)


def test_a_list_that_is_no_text_is_one_sentence(tmp_path: Path):
    (tmp_path / "l").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(SttmError, match=r"is not UTF-8 text"):
        read_split(data_settings(train={"list": tmp_path / "l"}), "train")
