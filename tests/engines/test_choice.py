"""What `auto` measures, and what it remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sttm
from sttm.engines import choice
from sttm.engines.engine import ENGINES, Engine
from tests.helpers import lively

SECONDS = {"eager": 4.0, "compile": 2.0, "onnx": 3.0, "openvino": 1.0}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replace engines by names that take `SECONDS`; return those that were made."""
    made: list[str] = []

    def make(name: str, model: Any, dtype: str) -> Engine:
        made.append(name)
        if name == "onnx":
            raise sttm.SttmError("this model has no form in ONNX")
        return Engine(name, dtype, model, lambda pixels: pixels)

    monkeypatch.setenv("STTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "make_engine", make)
    monkeypatch.setattr(choice, "_seconds", lambda engine, pixels: SECONDS[engine.name])
    monkeypatch.setattr(choice, "available", lambda dtype, device: [n for n in ENGINES if dtype in ENGINES[n]])
    return made


def test_the_fastest_is_chosen_and_remembered(made: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    model = lively("videomae")
    engine = choice.place("auto", model, batch=2, note=said.append)
    assert isinstance(engine, Engine) and engine.name == "openvino" and made == list(ENGINES)
    assert "openvino is fastest (openvino 1000 ms, compile 2000 ms, eager 4000 ms)" in said[-1]
    assert any("engine onnx does not run this model" in sentence for sentence in said)
    made.clear()
    again = choice.place("auto", lively("videomae", seed=3), batch=2, note=said.append)  # whatever the weights are
    assert isinstance(again, Engine) and again.name == "openvino" and made == ["openvino"]
    assert "as measured before" in said[-1]
    # Another batch, dtype or schedule is another question.
    sttm.apply(model, compute=0.6)
    for options in ({"batch": 3}, {"batch": 2, "dtype": "bf16"}, {"batch": 2}):
        made.clear()
        choice.place("auto", model, **options)
        assert len(made) > 1
    assert len(list((tmp_path / "cache" / "engines").glob("*.json"))) == 4


def test_a_damaged_memory_is_measured_again(made: list[str], tmp_path: Path) -> None:
    model = lively("videomae")
    choice.place("auto", model)
    (file,) = (tmp_path / "cache" / "engines").glob("*.json")
    for text in ("", "[]", '{"engine": "turbo"}'):
        file.write_text(text)
        made.clear()
        choice.place("auto", model)
        assert len(made) == len(ENGINES)


def test_a_folder_that_cannot_be_written_is_said(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    said: list[str] = []
    assert choice.place("auto", lively("videomae"), note=said.append) is not None
    assert "cannot be kept" in said[-1]
