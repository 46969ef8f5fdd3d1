"""The first line of an exception."""

import pytest

from sttm.errors import QUOTED, SttmError, did_you_mean, first_line, quoted, unknown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("Input size is wrong.\nSecond line."), "Input size is wrong"),
        (RuntimeError("\n  CUDA error\n"), "CUDA error"),
        (KeyError(), "KeyError"),
        (SttmError(""), "SttmError"),
    ],
)
def test_first_line_is_one_line_without_a_full_stop(error, line):
    assert first_line(error) == line


def test_the_nearest_name_is_suggested_and_all_are_listed():
    assert str(unknown("method", "tomme", ["pool", "sttm", "tome"])) == (
        "unknown method 'tomme'; did you mean tome? choose one of pool, sttm, tome"
    )
    assert str(unknown("kind", "music", ["motion", "scene"])) == "unknown kind 'music'; choose motion or scene"
    assert did_you_mean("qqq", ["tome"], "see there") == "see there"


def test_a_long_text_is_quoted_in_part():
    assert quoted("a" * QUOTED) == "a" * QUOTED and len(quoted("a" * 9999)) == QUOTED
    message = str(SttmError(f"cannot read {'x' * 9999} here; check the path"))
    assert message == f"cannot read {quoted('x' * 9999)} here; check the path"
    assert len(str(unknown("method", "y " * 9999, ["tome"]))) < QUOTED + 50
