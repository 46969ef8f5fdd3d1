"""Whole commands in a process of their own: on a terminal, in a pipe, and interrupted."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ROOT

STTM = [sys.executable, "-m", "sttm"]
ENVIRONMENT = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
#: Of a bar: the counts, the rate, and the time left.
BAR = re.compile(r"(\d+)/(\d+).*?[\d.e+]+/s.*?\d:\d\d:\d\d", re.S)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pty and signals of POSIX")


@dataclass
class Screen:
    """A command on a terminal: what it has printed so far."""

    process: subprocess.Popen[bytes]
    terminal: int
    text: str = ""

    def until(self, pattern: str = "", seconds: float = 120) -> str:
        """Return what was printed as soon as it has the pattern; without one, when the command has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (pattern and re.search(pattern, self.text)):
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.terminal, 65536).decode("utf-8", "replace")
                except OSError:  # it has ended
                    break
            elif self.process.poll() is not None:
                break
        assert not pattern or re.search(pattern, self.text), self.text
        return self.text

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        os.write(self.terminal, b"\x03")
        self.until()
        return self.process.wait(60)


@pytest.fixture
def screen() -> Iterator:
    """Start commands on a terminal of 120 columns, their stdout there too."""
    started = []

    def start(*args: object, **environment: str) -> Screen:
        ours, theirs = pty.openpty()
        names = ENVIRONMENT | {"COLUMNS": "120"} | environment
        kept = {name: value for name, value in names.items() if value}
        process = subprocess.Popen(
            [*STTM, *map(str, args)], stdin=theirs, stdout=theirs, stderr=theirs, env=kept, close_fds=True,
            start_new_session=True, preexec_fn=lambda: _own_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)
        started.append(Screen(process, ours))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        os.close(one.terminal)


def _own_terminal(terminal: int) -> None:
    """Make the terminal the one whose Ctrl-C reaches this process."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    _heed_ctrl_c()


def _heed_ctrl_c() -> None:
    """Undo that a shell which runs the tests in the background has them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def many(clips: Path, times: int) -> list[str]:
    return [str(clips / "a.mp4")] * times


@pytest.mark.slow
def test_progress_of_predict_has_rate_and_time_left(screen, small_model, clips):
    command = ("predict", *many(clips, 60), "--model", small_model, "--batch-size", "1")
    one = screen(*command)
    text = one.until()
    assert one.process.wait() == 0
    counts = [(int(done), int(total)) for done, total in BAR.findall(text)]
    assert counts and {total for _, total in counts} == {60}, text[-2000:]
    piped = subprocess.run([*STTM, *map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert not piped.stderr and "\x1b" not in piped.stdout and piped.stdout.count("%  ") == 180


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_130(screen, small_model, clips):
    one = screen("predict", *many(clips, 20_000), "--model", small_model, "--json", "--batch-size", "1")
    one.until("predictions")
    assert one.interrupt() == 130
    last = one.text.rpartition("^C")[2].replace("\r", "")
    assert [line for line in last.splitlines() if line and "predictions" not in line] == ["sttm: interrupted"]


@pytest.mark.slow
def test_ctrl_c_while_making_videos_is_one_line_and_130(screen, tmp_path):
    one = screen("synth", tmp_path / "made", "--clips", "100000", "--workers", "2")
    one.until(r"\d+/100000.*?/s")
    assert one.interrupt() == 130
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", one.text.rpartition("^C")[2]).replace("\r", "\n")
    assert "Traceback" not in one.text
    assert [line for line in said.splitlines() if line.startswith(("sttm", "Process", "Keyboard"))] == [
        "sttm: interrupted"
    ]


@pytest.mark.slow
def test_an_interrupted_output_is_no_output(small_model, clips, tmp_path):
    (tmp_path / "old.jsonl").write_text("before\n")
    files = [*many(clips, 20_000), "--model", str(small_model), "--json"]
    command = [*STTM, "predict", *files, "--output", str(tmp_path / "old.jsonl")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, preexec_fn=_heed_ctrl_c) as run:
        assert run.stdout is not None and "predictions" in run.stdout.readline().decode()
        run.send_signal(signal.SIGINT)
        run.stdout.read()
    assert run.returncode == 130
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.jsonl": "before\n"}


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(small_model, clips):
    command = " ".join([*STTM, "predict", *many(clips, 200), "--json", "--model", str(small_model), "--batch-size 1"])
    shell = f"{command} | head -1; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", shell], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    first, code = run.stdout.splitlines()
    assert "predictions" in json.loads(first) and code == "141"
    assert not run.stderr


@pytest.mark.parametrize("stdout", [">&-", "> /dev/full"])
def test_an_stdout_that_takes_nothing_is_a_sentence_and_no_success(stdout):
    for command in ("--version", "configs"):
        shell = [*STTM, command, stdout]
        run = subprocess.run(["bash", "-c", " ".join(shell)], env=ENVIRONMENT, capture_output=True, text=True)
        assert run.returncode == 2 and re.fullmatch(r"sttm: (stdout: )?(Bad file|No space).*\n", run.stderr), run


def test_errors_without_an_stderr_reach_no_stdout():
    shell = f"{' '.join(STTM)} configs show x 2>&-"
    run = subprocess.run(["bash", "-c", shell], env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 2 and not run.stdout


def test_completion_knows_commands_and_options():
    for words, wanted in (("sttm pre", "predict"), ("sttm predict --mod", "--model"), ("sttm data ", "check")):
        names = {"_STTM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        run = subprocess.run(STTM, env=ENVIRONMENT | names, capture_output=True, text=True, check=False)
        assert wanted in run.stdout.split(), run
    # The shell is found among the parents of the process, so one is started; "true" keeps bash from leaving its place.
    script = " ".join([*STTM, "--show-completion"]) + "; true"
    shown = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "_STTM_COMPLETE" in shown.stdout, shown
