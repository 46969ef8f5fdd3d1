"""The first line of an exception."""

import pytest

from sttm.errors import SttmError, first_line


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
