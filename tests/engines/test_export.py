"""A file is kept only if it is the model; nothing half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sttm
from sttm import models
from sttm.engines import export as exporting
from tests.helpers import FixedModel, pixels


@pytest.mark.parametrize(
    ("name", "dtype", "sentence"),
    [
        ("a.onx", "fp32", r"'\.onx'; did you mean \.onnx"),
        ("a.onnx", "bf16", "choose fp32 or int8"),
        ("there.onnx", "fp32", r"there\.onnx exists; give another name, or --force"),
        ("beside.xml", "fp32", r"beside\.bin exists"),
        ("folder.onnx", "fp32", "is a folder"),
        ("nowhere/a.onnx", "fp32", "there is no folder"),
    ],
)
def test_targets_are_checked_before_anything_is_loaded(
    name: str, dtype: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm.models.load", lambda name: pytest.fail("loaded a model"))
    (tmp_path / "there.onnx").touch()
    (tmp_path / "beside.bin").touch()
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(sttm.SttmError, match=sentence):
        sttm.export("sttm-motion", tmp_path / name, dtype=dtype)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_file_is_kept_only_if_it_agrees(
    wrong: bool, model: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: Any, path: Path, said: Any, dtype: str) -> None:
        path.write_bytes(file.read_bytes())

    monkeypatch.setattr(exporting, "to_onnx", write)
    target = tmp_path / "out.onnx"
    target.write_text("old")
    if wrong:
        with pytest.raises(sttm.SttmError, match="disagrees with the model"):
            sttm.export(_other(model), target, force=True)
        assert target.read_text() == "old"
    else:
        done = sttm.export(model, target, force=True)
        assert target.read_bytes() == file.read_bytes()
        assert done.distance < 1e-4 and done.clips == exporting.RANDOM_CLIPS and done.opset == 20
    assert list(tmp_path.iterdir()) == [target]


def _other(model: Any) -> Any:
    """Return the model with one bias that is not the file's."""
    from sttm.engines.graph import shared_copy

    other = shared_copy(model)
    other.classifier.bias = torch.nn.Parameter(model.classifier.bias + torch.tensor([0, 0, 0.1, 0, 0]))
    return other


def test_what_counts_as_agreement() -> None:
    clips = torch.arange(5.0)[:, None].expand(5, 3)
    wanted = FixedModel(lambda x: torch.tensor([[1.0, 0, -1]]).repeat(len(x), 1), ["a", "b", "c"])

    def off(by: float, on: int) -> FixedModel:
        """Return a model that is off by so much on so many clips."""
        return FixedModel(
            lambda x: wanted.answer(x) + by * (x[:, :1] < on) * torch.tensor([-1.0, 1, 0]), ["a", "b", "c"]
        )

    assert exporting.compare(off(9e-4, 5), wanted, clips, "fp32") == pytest.approx(9e-4, rel=1e-3)
    assert exporting.compare(off(2.0, 2), wanted, clips, "int8") == 0  # two of five clips merged otherwise
    for by, on, dtype in ((2e-3, 1, "fp32"), (0.9, 3, "int8"), (float("nan"), 5, "fp32")):
        with pytest.raises(sttm.SttmError, match="disagrees with the model on 5 clips"):
            exporting.compare(off(by, on), wanted, clips, dtype)


def test_pixels_of_the_bundled_videos(small_model: Path) -> None:
    model, preprocess = models.load_with_preprocess(small_model)
    clips = exporting._examples(model, preprocess)
    assert clips.shape[1:] == pixels(model)[0].shape and len(clips) == 6
