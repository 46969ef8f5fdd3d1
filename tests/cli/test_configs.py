"""`sttm configs`, `sttm configs show`, and `sttm train` with the name of a recipe."""

import json
import subprocess
import sys
import tomllib
import zipfile

import pytest

from sttm.config import load
from sttm.config.reading import recipes
from tests.helpers import ROOT


def test_every_recipe_has_a_line(sttm):
    lines = sttm("configs").out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes())
    about = {line.split()[0]: line.partition("  ")[2].strip() for line in lines}
    assert about["ssv2/vivit"] == "ViViT-B 16x2 on Something-Something v2, plain."
    assert json.loads(sttm("configs", "--json").out) == [{"recipe": n, "about": text} for n, text in about.items()]


def test_show_prints_the_file(sttm, tmp_path):
    shown = sttm("configs", "show", "motion")
    assert shown.code == 0 and shown.out == (ROOT / "configs" / "motion.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shown.out)
    assert load(tmp_path / "mine.yaml") == load("motion")


@pytest.mark.parametrize("command", [["configs", "show"], ["train"]])
def test_an_unknown_name_is_one_sentence(sttm, command):
    outcome = sttm(*command, "ssv2/videomae-b-stm")
    assert outcome.code == 2 and not outcome.out
    said = "ssv2/videomae-b-stm is neither a file nor a recipe; did you mean ssv2/videomae-b-sttm?"
    assert outcome.err == f"sttm: {said}\n"


def test_train_takes_a_recipe_by_name(sttm, monkeypatch, tmp_path):
    from sttm.training import run

    settings = []
    monkeypatch.setattr(run, "train", lambda given, report: settings.append(given))
    monkeypatch.chdir(tmp_path)
    assert sttm("train", "ut_interaction", "--set", "merging.compute=0.5").code == 0
    assert settings == [load(ROOT / "configs" / "ut_interaction.yaml", ["merging.compute=0.5"])]


def test_the_wheel_takes_the_folder_along():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"] == {"configs": "sttm/configs"}
    assert "/configs" in build["sdist"]["include"]


@pytest.mark.slow
def test_a_wheel_holds_every_recipe(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        held = set(files.namelist())
    assert {f"sttm/configs/{name}.yaml" for name in recipes()} <= held and "sttm/configs/ssv2/base.yaml" in held
