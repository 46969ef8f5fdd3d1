"""The progress bar: on a terminal only, and what advances it."""

import io
import sys

import pytest

from sttm.cli.progress import progress


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
