"""The progress bar: on a terminal only, and what advances it."""

import io
import re
import sys

import pytest

from sttm.cli.progress import progress
from tests.helpers import write_recipe


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "drawn"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch, stream, shown, drawn):
    monkeypatch.setenv("TERM", "xterm")
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress("clips", 7, shown=shown) as advance:
        advance(3)
    text = stderr.getvalue()
    assert ("clips" in text and "3/7" in text) == drawn
    assert drawn or not text


def test_the_layer_below_may_tell_the_total(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress("forwards") as advance:
        advance(1, 9)
        advance(1, 9)
    assert "2/9" in stderr.getvalue()


@pytest.mark.parametrize("wanted", ["", "1"])
def test_no_color_takes_the_colours_out(monkeypatch, wanted):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", wanted)
    monkeypatch.setattr(sys, "stderr", stderr := Terminal())
    with progress("clips", 7) as advance:
        advance(3)
    assert bool(re.search(r"\x1b\[(\d;)*[349][0-7]", stderr.getvalue())) != bool(wanted)


LOG_EACH = "--set run.log_every=1 --set data.workers=0"
#: Of a bar: the counts, the rate, and the time left.
BAR = re.compile(r"(\d+)/(\d+).*?[\d.e+]+/s.*?\d:\d\d:\d\d", re.S)


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("clips", "predict {clips}/a.mp4 {clips}/deep --model {model} --batch-size 1"),
        ("videos", "synth {tmp}/made --clips 20 --size 32 --frames 8 --workers 1"),
        ("videos", "data check {tmp}/c.yaml --decode"),
        ("videos", "eval {motion_model} --data {videos} --root {root} --labels {root}/../labels.json --batch-size 2"),
        ("forwards", "bench --model {model} --rounds 2 --compute 1,0.7"),
        ("rounds", "bench --model {model} --rounds 2 --pipeline --data {videos}"),
        ("steps", "train {tmp}/c.yaml --set run.log_every=1 --set run.save_every=100"),
        (
            "steps",
            "distill {motion_model} --data {root} --compute 0.5 -o {tmp}/out --steps 8 --batch-size 2 " + LOG_EACH,
        ),
    ],
)
def test_commands_draw_a_bar_with_rate_and_time_left(
    sttm, monkeypatch, tmp_path, clips, small_model, small_set, motion_model, motion_videos, words, args
):
    write_recipe(tmp_path, *small_set)
    places = {"tmp": tmp_path, "clips": clips, "model": small_model, "motion_model": motion_model}
    places |= {"videos": motion_videos / "validation.json", "root": motion_videos / "videos"}
    command = args.format(**places).split()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stderr := Terminal())
    assert sttm(*command).code == 0, stderr.getvalue()
    drawn = stderr.getvalue()
    assert words in drawn and BAR.search(drawn), drawn
    assert words != "steps" or re.search(r"\d/8.*?/s.*?loss \d+\.\d{4}", drawn, re.S)
    if words == "clips":
        monkeypatch.setattr(sys, "stderr", stderr := Terminal())
        assert sttm(*command, "--quiet").code == 0 and not stderr.getvalue()
