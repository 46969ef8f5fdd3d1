"""The check of a data set: everything that a long run would stumble over, told before it."""

import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sttm import cli
from sttm.config.settings import DataSettings, ModelSettings
from sttm.data.datasets import check as engine
from sttm.data.datasets.video_set import Video
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.synth.videos import encode

NAMES = ("hop", "run")


def make(root: Path, counts: dict[str, int], *, frames: int = 8) -> None:
    """Videos of a class each, all different, and the csv that lists them."""
    rows, level = ["path,label,split"], 0
    (root / "v").mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        for number in range(count):
            level += 9
            encode(np.full((frames + number, 32, 32, 3), level % 256, np.uint8), root / f"v/{split}{number}.mp4")
            rows.append(f"v/{split}{number}.mp4,{NAMES[number % 2]},{split}")
    (root / "l.csv").write_text("\n".join(rows), encoding="utf-8")


def settings(root: Path, *splits: str, **data: Any) -> DataSettings:
    return DataSettings.model_validate({split: {"list": root / "l.csv"} for split in splits} | data)


def test_a_sound_set_is_counted(tmp_path: Path):
    make(tmp_path, {"train": 5, "val": 2, "test": 1})
    seen: list[int] = []

    def watch(looks: Any, total: int) -> Any:
        for look in looks:
            seen.append(total)
            yield look
        seen.append(-1)  # reached only if all were taken to the end

    report = engine.check(settings(tmp_path, "train", "validation", "test"), sampling=Sampling(10), watch=watch)
    assert report["ok"] and not report["warnings"] and not report["shared"] and seen == [8] * 8 + [-1]
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
    make(tmp_path, {"train": 6})
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
    make(tmp_path, {"train": 2})

    def broken(video: Any, sampling: Sampling, *_: Any) -> None:
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
    make(tmp_path, {"train": 3})
    probe = Video.probe

    def flawed(video: Any) -> Any:
        if video.path.endswith("1.mp4"):
            raise RuntimeError("a bug")
        return probe(video)

    monkeypatch.setattr(Video, "probe", flawed)
    (train,) = engine.check(settings(tmp_path, "train"))["splits"]
    assert train["clips"] == 2 and "RuntimeError: a bug" in train["unreadable"][0]["error"]


def test_the_same_video_in_two_splits_is_told_whatever_its_name(tmp_path: Path):
    make(tmp_path, {"train": 4, "test": 2})
    shutil.copyfile(tmp_path / "v/train3.mp4", tmp_path / "v/test1.mp4")
    report = engine.check(settings(tmp_path, "train", "test"))
    places = [("train", tmp_path / "v/train3.mp4"), ("test", tmp_path / "v/test1.mp4")]
    assert report["shared"] == [[{"split": split, "path": str(path)} for split, path in places]]
    assert report["ok"] and "1 of the videos stand in more than one split" in report["warnings"][0]


def test_shared_videos_are_found_inside_shards(tmp_path: Path):
    make(tmp_path, {"train": 4})
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


def test_copies_within_a_split_are_told_and_those_with_two_labels(tmp_path: Path):
    make(tmp_path, {"train": 4})
    shutil.copyfile(tmp_path / "v/train0.mp4", tmp_path / "v/train1.mp4")
    shutil.copyfile(tmp_path / "v/train0.mp4", tmp_path / "v/train2.mp4")
    (warning,) = engine.check(settings(tmp_path, "train"))["warnings"]
    assert warning == "2 of the clips of data.train are copies of others in it; 1 of those have several labels"


def test_a_class_without_clips_and_classes_without_names_are_told(tmp_path: Path):
    make(tmp_path, {"train": 2})
    (tmp_path / "names").write_text("hop\nrun\nfly")
    (warning,) = engine.check(settings(tmp_path, "train", labels=tmp_path / "names"))["warnings"]
    assert warning.startswith("1 of 3 classes have no clip to train on ('fly')")
    (tmp_path / "l.csv").write_text("v/train0.mp4 0\nv/train1.mp4 1\n")
    (warning,) = engine.check(settings(tmp_path, "train"))["warnings"]
    assert warning.startswith("clips will not be mirrored, as nothing names the classes")
    assert not engine.check(settings(tmp_path, "train", direction_sensitive=False))["warnings"]


def test_more_videos_than_are_handed_out_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make(tmp_path, {"train": 5, "test": 3})
    monkeypatch.setattr(engine, "_MANY", 2)
    train, test = engine.check(settings(tmp_path, "train", "test"), threads=3)["splits"]
    assert (train["clips"], test["clips"], train["frames"]["max"], test["frames"]["max"]) == (5, 3, 12, 10)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({"start": "sttm-motion"}, Sampling(16)),
        ({"start": "sttm-motion", "frames": 24, "sampling": "dense", "stride": 4}, Sampling(24, "dense", 4)),
        ({"family": "vivit"}, Sampling(32)),
        ({"family": "vjepa2", "config": {"frames_per_clip": 8}}, Sampling(8)),
        ({"start": "some/model-on-the-hub"}, None),
        ({"start": "some/model-on-the-hub", "frames": 12}, Sampling(12)),
    ],
)
def test_the_clip_that_a_model_wants(model: dict[str, Any], wanted: Sampling | None):
    assert engine.clip_of(ModelSettings.model_validate(model)) == wanted


@pytest.fixture
def sttm(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sttm", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        return int(exit_.value.code or 0), output.out, output.err

    return run


def config(root: Path, *splits: str) -> Path:
    sections = {
        "data": {split: {"list": str(root / "l.csv")} for split in splits},
        "model": {"start": "sttm-motion"},
        "optimizer": {"epochs": 1},
        "run": {"output": str(root / "out")},
    }
    (root / "c.yaml").write_text(yaml.safe_dump(sections))
    return root / "c.yaml"


def test_the_command_says_all_is_well(sttm, tmp_path: Path):
    make(tmp_path, {"train": 2, "val": 2}, frames=16)
    code, out, err = sttm("data", "check", config(tmp_path, "train", "validation"), "--decode")
    assert (code, err) == (0, "")
    assert "train" in out and "validation" in out and "16 / 16.5 / 17" in out


def test_the_command_names_what_is_amiss(sttm, tmp_path: Path):
    make(tmp_path, {"train": 14})
    for number in range(12):
        (tmp_path / f"v/train{number}.mp4").unlink()
    (tmp_path / "v/train13.mp4").write_text("<html>")
    code, out, err = sttm("data", "check", config(tmp_path, "train"))
    assert code == 1 and "Traceback" not in err
    assert "12 videos of train missing" in err and "train9.mp4; and 2 more" in err and "train10" not in err
    assert "1 video of train unreadable" in err and "web page" in err
    code, out, _ = sttm("data", "check", config(tmp_path, "train"), "--json")
    (train,) = json.loads(out)["splits"]
    assert code == 1 and len(train["missing"]) == 12


def test_wrong_usage_is_one_sentence(sttm, tmp_path: Path):
    make(tmp_path, {"train": 2})
    path = config(tmp_path, "train")
    for change, wanted in (
        ("data.train.list=nowhere.csv", "data.train.list=nowhere.csv does not exist"),
        ("data.train=null", "data names no list"),
        ("data.trian=x", "there is no setting data.trian; did you mean train?"),
    ):
        code, out, err = sttm("data", "check", path, "--set", change)
        assert (code, out) == (2, "") and wanted in err and len(err.splitlines()) == 1
