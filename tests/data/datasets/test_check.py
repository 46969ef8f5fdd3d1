"""The check of a data set: everything that would stop a long run, reported before it."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sttm.config.sections import DataSettings
from sttm.data.datasets import check as engine
from sttm.data.datasets.video_set import Video
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from tests.data.helpers import (
    make_csv_set,
)


def settings(root: Path, *splits: str, **data: Any) -> DataSettings:
    return DataSettings.model_validate({split: {"list": root / "l.csv"} for split in splits} | data)


def test_a_sound_set_is_counted(tmp_path: Path):
    make_csv_set(tmp_path, {"train": 5, "val": 2, "test": 1})
    seen: list[tuple[int, int]] = []
    data, advance = settings(tmp_path, "train", "validation", "test"), lambda *done: seen.append(done)
    report = engine.check(data, sampling=Sampling(10), advance=advance)
    assert report["ok"] and not report["warnings"] and not report["shared"] and seen == [(1, 8)] * 8
    train, validation, test = report["splits"]
    assert [row["split"] for row in report["splits"]] == ["train", "validation", "test"]
    assert [row["clips"] for row in report["splits"]] == [5, 2, 1]
    assert train["clips_per_class"] == {"min": 2, "median": 2.5, "max": 3}
    assert train["frames"] == {"min": 8, "median": 10, "max": 12}
    assert train["seconds"] == {"min": 1.0, "median": 1.25, "max": 1.5} and train["fps"]["max"] == 8
    assert train["hours"] == round((8 + 9 + 10 + 11 + 12) / 8 / 3600, 4)
    assert train["short"] == [str(tmp_path / f"v/train{n}.mp4") for n in range(2)]
    assert test["clips_per_class"] == {"min": 0, "median": 0.5, "max": 1} and validation["missing"] == []
    json.dumps(report)


def test_missing_and_unreadable_videos_are_named_with_reasons(tmp_path: Path):
    make_csv_set(tmp_path, {"train": 6})
    (tmp_path / "v/train0.mp4").unlink()
    (tmp_path / "v/train1.mp4").write_bytes(b"")
    whole = (tmp_path / "v/train2.mp4").read_bytes()
    (tmp_path / "v/train2.mp4").write_bytes(whole[: len(whole) // 2])
    report = engine.check(settings(tmp_path, "train"))
    (train,) = report["splits"]
    assert not report["ok"]
    assert train["missing"] == [str(tmp_path / "v/train0.mp4")]
    assert [Path(entry["path"]).stem for entry in train["unreadable"]] == ["train1", "train2"]
    assert "is empty (0 bytes)" in train["unreadable"][0]["error"]
    assert train["clips"] == 3
    assert (
        "3 of 6 videos of data.train are missing or unreadable, more than data.max_missing=0.05"
        in report["warnings"][0]
    )
    assert not engine.check(settings(tmp_path, "train", max_missing=0.5))["warnings"]


def test_only_decoding_finds_damage_behind_the_first_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_csv_set(tmp_path, {"train": 2})

    def broken(video: Any, sampling: Sampling, **_: Any) -> None:
        raise SttmError(f"{video.path} breaks off ({sampling.num_frames})")

    monkeypatch.setattr(Video, "read", broken)
    assert engine.check(settings(tmp_path, "train"))["ok"]
    report = engine.check(settings(tmp_path, "train"), sampling=Sampling(7), decode=True)
    assert not report["ok"] and report["splits"][0]["missing"] == []
    assert [entry["error"].split()[-1] for entry in report["splits"][0]["unreadable"]] == ["(7)", "(7)"]


def test_decoding_notices_files_that_end_early(shared_data: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    for name in ("bad_truncated_half.avi", "h264.mp4"):
        shutil.copyfile(shared_data / "clips-made" / name, tmp_path / "run" / name)
    data = DataSettings.model_validate({"train": {"list": tmp_path}})
    assert engine.check(data)["splits"][0]["remarks"] == []
    remarks = engine.check(data, sampling=Sampling(4), decode=True)["splits"][0]["remarks"]
    assert {Path(remark["path"]).name for remark in remarks} == {"bad_truncated_half.avi"}
    assert any("yields only" in remark["remark"] for remark in remarks)


def test_a_defect_costs_one_video_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_csv_set(tmp_path, {"train": 3})
    probe = Video.probe

    def flawed(video: Any) -> Any:
        if video.path.endswith("1.mp4"):
            raise RuntimeError("a bug")
        return probe(video)

    monkeypatch.setattr(Video, "probe", flawed)
    (train,) = engine.check(settings(tmp_path, "train"))["splits"]
    assert train["clips"] == 2 and "RuntimeError: a bug" in train["unreadable"][0]["error"]


def test_the_same_video_in_two_splits_is_found_whatever_its_name(tmp_path: Path):
    make_csv_set(tmp_path, {"train": 4, "test": 2})
    shutil.copyfile(tmp_path / "v/train3.mp4", tmp_path / "v/test1.mp4")
    report = engine.check(settings(tmp_path, "train", "test"))
    places = [("train", tmp_path / "v/train3.mp4"), ("test", tmp_path / "v/test1.mp4")]
    assert report["shared"] == [[{"split": split, "path": str(path)} for split, path in places]]
    assert report["ok"] and "1 of the videos are in more than one split" in report["warnings"][0]


def test_shared_videos_are_found_inside_shards(tmp_path: Path):
    make_csv_set(tmp_path, {"train": 4})
    data = {}
    (tmp_path / "zero").write_text("0")
    for split, numbers in (("train", (0, 1, 2)), ("test", (3, 1))):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for number in numbers:
                tar.add(tmp_path / f"v/train{number}.mp4", f"{number}.mp4")
                tar.add(tmp_path / "zero", f"{number}.cls")
        data[split] = {"list": tmp_path / f"{split}.tar"}
    ((one, other),) = engine.check(DataSettings.model_validate(data))["shared"]
    assert one["path"] == f"{tmp_path}/train.tar/1" and other["path"] == f"{tmp_path}/test.tar/1"


def test_copies_within_a_split_are_counted_and_those_with_two_labels(tmp_path: Path):
    make_csv_set(tmp_path, {"train": 4})
    shutil.copyfile(tmp_path / "v/train0.mp4", tmp_path / "v/train1.mp4")
    shutil.copyfile(tmp_path / "v/train0.mp4", tmp_path / "v/train2.mp4")
    (warning,) = engine.check(settings(tmp_path, "train"))["warnings"]
    assert warning == "2 of the clips of data.train are copies of others in it; 1 of those have several labels"


def test_classes_without_clips_and_classes_without_names_give_warnings(tmp_path: Path):
    make_csv_set(tmp_path, {"train": 2})
    (tmp_path / "names").write_text("hop\nrun\nfly")
    (warning,) = engine.check(settings(tmp_path, "train", labels=tmp_path / "names"))["warnings"]
    assert warning.startswith("1 of 3 classes have no clip to train on ('fly')")
    (tmp_path / "l.csv").write_text("v/train0.mp4 0\nv/train1.mp4 1\n")
    (warning,) = engine.check(settings(tmp_path, "train"))["warnings"]
    assert warning.startswith("clips will not be mirrored, as nothing names the classes")
    assert not engine.check(settings(tmp_path, "train", direction_sensitive=False))["warnings"]


def test_more_videos_than_are_handed_out_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_csv_set(tmp_path, {"train": 5, "test": 3})
    monkeypatch.setattr(engine, "_AHEAD", 2)
    train, test = engine.check(settings(tmp_path, "train", "test"), threads=3)["splits"]
    assert (train["clips"], test["clips"], train["frames"]["max"], test["frames"]["max"]) == (5, 3, 12, 10)
