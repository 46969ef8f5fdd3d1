"""Help, usage and errors of the whole command line."""

import subprocess
import sys
import tomllib
import warnings

import pytest

from sttm.doctor import Finding
from tests.helpers import ROOT

COMMANDS = (
    "predict",
    "models",
    "doctor",
    "synth",
    "bench",
    "demo",
    "train",
    "configs",
    "configs show",
    "eval",
    "calibrate",
    "distill",
    "data check",
)


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv = ['sttm', '--help']\n"
        "from sttm.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert all(command.split()[0] in run.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(sttm, command):
    help_ = sttm(*command.split(), "--help")
    assert help_.code == 0
    assert f"Example:  sttm {command}" in help_.out


def test_version(sttm):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sttm("--version").out.strip() == project["version"]


@pytest.mark.parametrize(
    "args", [[], ["nonsense"], ["predict"], ["predict", "a.mp4", "--top-k", "0"], ["predict", "--x"]]
)
def test_wrong_usage_is_two(sttm, args):
    outcome = sttm(*args)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("compute", ["0", "-1", "1.5", "nan", "inf", "fast", ""])
@pytest.mark.parametrize("command", [["predict", "a.mp4"], ["bench"]])
def test_an_impossible_compute_is_one_sentence(sttm, command, compute):
    outcome = sttm(*command, "--compute", compute)
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: compute=") and outcome.err.count("\n") == 1
    assert not outcome.out


@pytest.mark.parametrize("args", [["--views", "3"], ["--views", "0x1"], ["--views", "2x2"], ["--method", "sttm"]])
def test_contradictions_are_one_sentence(sttm, args):
    outcome = sttm("predict", "a.mp4", *args)
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1


@pytest.mark.parametrize("model", ["no-such-model", "."])
def test_an_unknown_model_is_one_sentence(sttm, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    outcome = sttm("predict", "a.mp4", "--model", model)
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1
    assert not outcome.out


def test_a_folder_that_may_not_be_made_is_one_sentence(sttm, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = sttm("synth", tmp_path / "file" / "below", "--clips", "20")
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1


def test_a_python_warning_is_one_line(sttm, monkeypatch):
    def warn() -> list[Finding]:
        warnings.warn("compute=0.9 is met by 0.86 only:\n  the token grid is small", stacklevel=1)
        return [Finding("python", "ok", "", needed=True)]

    monkeypatch.setattr("sttm.doctor.examine", warn)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = sttm("doctor")
    assert outcome.code == 0
    assert outcome.err == "sttm: warning: compute=0.9 is met by 0.86 only: the token grid is small\n"
    assert warnings.showwarning is before


def test_a_broken_installation_points_to_the_doctor(sttm, monkeypatch):
    monkeypatch.setitem(sys.modules, "sttm.synth.videos", None)
    outcome = sttm("synth", "videos")
    assert outcome.code == 2
    assert "sttm doctor" in outcome.err and outcome.err.count("\n") == 1
