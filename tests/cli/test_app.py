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
    "show",
    "stream",
    "batch",
    "serve",
    "models",
    "doctor",
    "synth",
    "bench",
    "export",
    "demo",
    "train",
    "configs",
    "configs show",
    "eval",
    "calibrate",
    "distill",
    "data check",
)


def test_help_imports_no_slow_package():
    code = (
        "import sys; sys.argv = ['sttm', '--help']\n"
        "from sttm.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(len({'torch', 'transformers', 'av', 'numpy', 'rich', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert all(command.split()[0] in run.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(sttm, command):
    help_ = sttm(*command.split(), "--help")
    assert help_.code == 0
    assert f"Example:  sttm {command}" in help_.out
    assert all(option in help_.out for option in ("-h, --help", "-q, --quiet", "-v, --verbose")) or command == "configs"
    assert sttm(*command.split(), "-h") == help_


def test_the_list_of_commands_cuts_no_line(sttm):
    shown = sttm("-h")
    assert shown.code == 0 and "..." not in shown.out.replace("ARGS]...", "")
    assert "--install-completion" in shown.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("predct a.mp4", "no such command 'predct'; did you mean predict? see sttm --help"),
        ("configs shw", "no such command 'shw'; did you mean show? see sttm configs --help"),
        ("predict a.mp4 --modle x", "no such option: --modle; did you mean --model? see sttm predict --help"),
        (
            "predict a.mp4 --dtype fp33",
            "is not one of 'fp32', 'bf16', 'int8'; did you mean fp32? see sttm predict --help",
        ),
        ("predict", "missing argument 'CLIP...'; see sttm predict --help"),
        (
            "predict a.mp4 --top-k 0",
            "for '--top-k', which should be greater than or equal to 1; see sttm predict --help",
        ),
        ("predict a.mp4 --model sttm-motoin", "did you mean sttm-motion?"),
        ("predict a.mp4 --compute 0.5 --method tomme", "unknown method 'tomme'; did you mean tome? choose one of"),
        ("train motoin", "did you mean motion?"),
        ("train motion --set optimizer.name=adam", "did you mean adamw?"),
        ("synth there --kind motoin", "did you mean motion?"),
        ("predict a.mp4 -q -v", "--quiet and --verbose contradict each other; leave one of them out"),
    ],
)
def test_mistakes_are_one_sentence_with_the_nearest_name(sttm, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    outcome = sttm(*args.split())
    assert outcome.code == 2 and not outcome.out
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1 and said in outcome.err
    assert not list(tmp_path.iterdir())


LONG = {"a word": "x" * 5000, "words": "x y " * 1250, "a path": "x/" * 2500}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize(
    "args",
    [
        ["predict", "{}"],
        ["predict", "a.mp4", "--model", "{}"],
        ["predict", "a.mp4", "--compute", "{}"],
        ["predict", "a.mp4", "--dtype", "{}"],
        ["predict", "a.mp4", "--output", "{}"],
        ["train", "{}"],
        ["train", "motion", "--set", "optimizer.name={}"],
        ["train", "motion", "--set", "optimizer.lr={}"],
        ["bench", "--methods", "{}", "--rounds", "1"],
        ["{}"],
    ],
)
def test_at_most_300_characters_of_what_was_typed_are_quoted(sttm, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    outcome = sttm(*(arg.format(text) for arg in args))
    assert outcome.code in (1, 2) and "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if "warning: no model was named" not in line]
    assert errors and all(line.count("x") <= 300 + 50 and len(line) < 1000 for line in errors), outcome.err[:2000]


def test_verbose_says_what_is_used_and_where_an_error_comes_from(sttm, small_model, clips):
    outcome = sttm("predict", clips / "a.mp4", "--model", small_model, "-v")
    assert outcome.code == 0 and f"sttm: {small_model} on cpu in fp32, compute 1.000" in outcome.err
    failed = sttm("predict", "a.mp4", "--model", "no-such-model", "--verbose")
    assert failed.code == 2 and "SttmError: no model 'no-such-model'" in failed.err
    assert failed.err.splitlines()[-1].startswith("sttm: no model 'no-such-model'")


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
