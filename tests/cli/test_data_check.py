"""`sttm data check`: its table, its JSON and its exit codes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sttm import cli
from sttm.cli.data_check import clips_of
from sttm.config.sections import ModelSettings
from sttm.data.video.read import Sampling
from tests.data.helpers import make_csv_set


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
    assert clips_of(ModelSettings.model_validate(model)) == wanted


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
    make_csv_set(tmp_path, {"train": 2, "val": 2}, frames=16)
    code, out, err = sttm("data", "check", config(tmp_path, "train", "validation"), "--decode")
    assert (code, err) == (0, "")
    assert "train" in out and "validation" in out and "16 / 16.5 / 17" in out


def test_the_command_names_what_is_amiss(sttm, tmp_path: Path):
    make_csv_set(tmp_path, {"train": 14})
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
    make_csv_set(tmp_path, {"train": 2})
    path = config(tmp_path, "train")
    for change, wanted in (
        ("data.train.list=nowhere.csv", "data.train.list=nowhere.csv does not exist"),
        ("data.train=null", "data names no list"),
        ("data.trian=x", "there is no setting data.trian; did you mean train?"),
    ):
        code, out, err = sttm("data", "check", path, "--set", change)
        assert (code, out) == (2, "") and wanted in err and len(err.splitlines()) == 1
