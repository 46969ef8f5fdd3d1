"""Where transformers' own tests come from, and what is said where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

import sttm
from tests.conformance import source


def test_a_folder_that_is_no_checkout_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(sttm.SttmError, match=r"no checkout of transformers: it has no tests/test_modeling_common\.py$"):
        source.find(str(tmp_path))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_modeling_common.py").touch()
    assert source.find(str(tmp_path)) == tmp_path / "tests"


def test_without_an_index_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(sttm.SttmError, match=r"cannot be had .*TRANSFORMERS=/path$") as caught:
        source.find(None)
    assert "\n" not in str(caught.value)
