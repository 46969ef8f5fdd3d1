"""A checkpoint is whole or it is not there, and what it holds comes back to the bit."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sttm
from sttm.config.settings import OptimizerSettings
from sttm.data.transforms.preprocess import Preprocess
from sttm.training import checkpoints, recipe
from sttm.training.checkpoints import Training
from tests.training.test_build import MODELS


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return made(tmp_path, ema=0.9)


def made(tmp_path: Path, ema: float | None, seed: int = 0) -> Training:
    torch.manual_seed(seed)
    model = MODELS["videomae"]()
    sttm.apply(model, 0.7, learned=True)
    optimizer = torch.optim.AdamW(recipe.parameter_groups(model, OptimizerSettings(steps=9)), lr=1e-2)
    average = None if ema is None else recipe.MovingAverage(model, ema)
    preprocess = Preprocess.from_folder(sttm.save(MODELS["videomae"](), tmp_path / "plain"))
    return Training(model, optimizer, average, preprocess)


def learn(training: Training, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    training.model.train()
    training.model(torch.randn(2, 4, 3, 32, 32, generator=generator)).logits.square().sum().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.average is not None:
        training.average.update(seed)


def everything(training: Training) -> dict[str, torch.Tensor]:
    state = {f"weights.{name}": value for name, value in training.model.state_dict().items()}
    for parameter, name in training.names.items():
        state |= {f"{name}.{key}": value for key, value in training.optimizer.state[parameter].items()}
    if training.average is not None:
        state |= {f"average.{name}": value for name, value in training.average.averages.items()}
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_goes_on_to_the_bit(ema: float | None, tmp_path: Path) -> None:
    training, other = made(tmp_path, ema), made(tmp_path, ema, seed=5)
    for step in range(3):
        learn(training, step)
    checkpoints.save(training, tmp_path / "step-3", {"step": 3}, main=True)
    checkpoints.restore(other, tmp_path / "step-3")
    for step in range(3, 6):
        learn(training, step)
        learn(other, step)
    one, two = everything(training), everything(other)
    assert one.keys() == two.keys() and len(one) > 100
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_the_model_in_it_is_the_average_and_classifies(training: Training, tmp_path: Path) -> None:
    for step in range(3):
        learn(training, step)
    checkpoints.save(training, tmp_path / "step-3", {"step": 3}, main=True)
    loaded = sttm.load(tmp_path / "step-3")
    assert training.average is not None
    for name, value in loaded.named_parameters():
        assert torch.equal(value, training.average.averages[name]), name
    assert not torch.equal(loaded.classifier.weight, training.model.classifier.weight)
    assert Preprocess.from_folder(tmp_path / "step-3") == training.preprocess


def damage(folder: Path, how: str) -> None:
    if how == "no progress":
        (folder / checkpoints.PROGRESS).unlink()
    elif how == "half of the progress":
        text = (folder / checkpoints.PROGRESS).read_text()
        (folder / checkpoints.PROGRESS).write_text(text[: len(text) // 2])
    elif how == "half of the weights":
        blob = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(blob[: len(blob) // 2])
    elif how == "no state":
        (folder / checkpoints.STATE).unlink()
    elif how == "not in place yet":
        folder.rename(folder.with_name(folder.name + checkpoints.PART))


@pytest.mark.parametrize(
    "how", ["no progress", "half of the progress", "half of the weights", "no state", "not in place yet"]
)
def test_a_damaged_one_is_passed_over(how: str, training: Training, tmp_path: Path) -> None:
    learn(training, 0)
    for step in (8, 9, 10):
        checkpoints.save(training, tmp_path / f"step-{step:08d}", {"step": step}, main=True)
    damage(tmp_path / "step-00000010", how)
    found = checkpoints.latest(tmp_path)
    assert found is not None and found[1]["step"] == 9 and found[0].name == "step-00000009"
    assert checkpoints.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("call", ["save_file", "_flush"])
def test_a_full_disk_leaves_what_was_there(
    call: str, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(training, 0)
    checkpoints.save(training, tmp_path / "step-1", {"step": 1}, main=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, call, full)
    for folder in (tmp_path / "step-1", tmp_path / "step-2"):
        with pytest.raises(sttm.SttmError, match="No space left on device; make room"):
            checkpoints.save(training, folder, {"step": 2}, main=True)
    found = checkpoints.latest(tmp_path)
    assert found is not None and found[1]["step"] == 1
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "step-2").exists()


def test_the_last_and_the_best_are_kept(training: Training, tmp_path: Path) -> None:
    learn(training, 0)
    for step in range(1, 6):
        checkpoints.save(training, tmp_path / f"step-{step:08d}", {"step": step}, main=True)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / "step-00000006.part")
    checkpoints.prune(tmp_path, keep=2, best="step-00000001")
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-0000000{n}" for n in (1, 4, 5)]


def test_only_the_main_process_writes(training: Training, tmp_path: Path) -> None:
    checkpoints.save(training, tmp_path / "step-1", {"step": 1}, main=False)
    assert not (tmp_path / "step-1").exists()


def test_copies_hold_the_model_only(training: Training, tmp_path: Path) -> None:
    learn(training, 0)
    checkpoints.save(training, tmp_path / "step-1", {"step": 1}, main=True)
    checkpoints.copy_model(tmp_path / "step-1", tmp_path / "best")
    names = {path.name for path in (tmp_path / "best").iterdir()}
    files = json.loads((tmp_path / "step-1" / checkpoints.PROGRESS).read_text())["files"]
    assert names == files.keys() - {checkpoints.STATE}
    sttm.load(tmp_path / "best")
