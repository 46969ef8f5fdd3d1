"""A checkpoint is complete or absent, and training continues from it to the bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

import sttm
from sttm.config.sections import OptimizerSettings
from sttm.data.transforms.preprocess import Preprocess
from sttm.training import checkpoints, recipe
from sttm.training.checkpoints import TrainingState
from sttm.training.optimizer import make_optimizer
from tests.helpers import assert_equal_tensors, tiny_model


@pytest.fixture
def training(tmp_path: Path) -> TrainingState:
    return build(tmp_path, ema=0.9)


def build(tmp_path: Path, ema: float | None, name: Literal["adamw", "muon"] = "adamw", seed: int = 0) -> TrainingState:
    torch.manual_seed(seed)
    model = tiny_model("videomae")
    sttm.apply(model, 0.7, learned=True)
    optimizer = make_optimizer(model, OptimizerSettings(steps=9, lr=1e-2, name=name))
    average = None if ema is None else recipe.MovingAverage(model, ema)
    preprocess = Preprocess.from_folder(sttm.save(tiny_model("videomae"), tmp_path / "plain"))
    return TrainingState(model, optimizer, average, preprocess)


def learn(training: TrainingState, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    training.model.train()
    training.model(torch.randn(2, 4, 3, 32, 32, generator=generator)).logits.square().sum().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.average is not None:
        training.average.update(seed)


def everything(training: TrainingState) -> dict[str, torch.Tensor]:
    state = {f"weights.{name}": value for name, value in training.model.state_dict().items()}
    for parameter, name in training.names.items():
        state |= {f"{name}.{key}": value for key, value in training.optimizer.state[parameter].items()}
    if training.average is not None:
        state |= {f"average.{name}": value for name, value in training.average.averages.items()}
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_continues_to_the_bit(ema: float | None, name: Literal["adamw", "muon"], tmp_path: Path) -> None:
    training, other = build(tmp_path, ema, name), build(tmp_path, ema, name, seed=5)
    for step in range(3):
        learn(training, step)
    checkpoints.save(training, tmp_path / "step-00000003", {"step": 3}, main=True)
    checkpoints.restore(other, tmp_path / "step-00000003")
    for step in range(3, 6):
        learn(training, step)
        learn(other, step)
    assert_equal_tensors(everything(training), everything(other))


def test_momentum_of_muon_is_saved_by_parameter_name(tmp_path: Path) -> None:
    training = build(tmp_path, None, "muon")
    learn(training, 0)
    checkpoints.save(training, tmp_path / "step-00000001", {"step": 1}, main=True)
    saved = load_file(tmp_path / "step-00000001" / checkpoints.STATE)
    matrix, bias = (f"videomae.encoder.layer.1.output.dense.{name}" for name in ("weight", "bias"))
    momentum = training.optimizer.state[training.model.get_parameter(matrix)]["momentum_buffer"]
    assert torch.equal(saved[f"optimizer.{matrix}.momentum_buffer"], momentum) and momentum.any()
    assert f"optimizer.{matrix}.exp_avg" not in saved and f"optimizer.{bias}.exp_avg" in saved


def test_the_model_in_it_is_the_average_and_classifies(training: TrainingState, tmp_path: Path) -> None:
    for step in range(3):
        learn(training, step)
    checkpoints.save(training, tmp_path / "step-00000003", {"step": 3}, main=True)
    loaded = sttm.load(tmp_path / "step-00000003")
    assert training.average is not None
    for name, value in loaded.named_parameters():
        assert torch.equal(value, training.average.averages[name]), name
    assert not torch.equal(loaded.classifier.weight, training.model.classifier.weight)
    assert Preprocess.from_folder(tmp_path / "step-00000003") == training.preprocess


def flip(file: Path, place: int) -> None:
    """Change one byte of a file, by its place from the start or, where negative, from the end."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


#: How a checkpoint is damaged, and what is said of it.
DAMAGE: dict[str, tuple[Any, str]] = {
    "no progress": (lambda folder: (folder / checkpoints.PROGRESS).unlink(), "training.json is missing"),
    "no hashes": (lambda folder: (folder / checkpoints.HASHES).unlink(), "hashes.json does not exist"),
    "hashes of another kind": (lambda folder: (folder / checkpoints.HASHES).write_text("[]"), "holds a list"),
    "half of the progress": (
        lambda folder: (folder / checkpoints.PROGRESS).write_text((folder / checkpoints.PROGRESS).read_text()[:5]),
        "training.json is not as it was written",
    ),
    "half of the weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        "model.safetensors is not as it was written",
    ),
    "a byte of the weights": (
        lambda folder: flip(folder / "model.safetensors", -30),
        "model.safetensors is not as it was written",
    ),
    "a byte of their header": (
        lambda folder: flip(folder / "model.safetensors", 0),
        "model.safetensors is not as it was written",
    ),
    "a byte of the optimizer's state": (
        lambda folder: flip(folder / checkpoints.STATE, -30),
        "training.safetensors is not as it was written",
    ),
    "another step": (
        lambda folder: (folder / checkpoints.PROGRESS).write_text('{"step": 4}'),
        "training.json is not as it was written",
    ),
    "no state": (lambda folder: (folder / checkpoints.STATE).unlink(), "training.safetensors is missing"),
    "one file more": (lambda folder: (folder / "a.safetensors").touch(), "a.safetensors is not in hashes.json"),
}


@pytest.mark.parametrize("how", sorted(DAMAGE))
def test_a_damaged_one_is_named_and_the_one_before_it_used(how: str, training: TrainingState, tmp_path: Path) -> None:
    learn(training, 0)
    for step in (8, 9, 10):
        checkpoints.save(training, tmp_path / f"step-{step:08d}", {"step": step}, main=True)
    damage, reason = DAMAGE[how]
    damage(tmp_path / "step-00000010")
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.progress["step"] == 9 and found.path.name == "step-00000009"
    assert len(found.damaged) == 1 and str(tmp_path / "step-00000010") in found.damaged[0]
    assert reason in found.damaged[0]
    damage(tmp_path / "step-00000009")
    damage(tmp_path / "step-00000008")
    with pytest.raises(
        sttm.SttmError, match=r"the last checkpoint is damaged .*, and so are 2 before it; delete"
    ) as caught:
        checkpoints.latest(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_under_another_number_is_damaged(training: TrainingState, tmp_path: Path) -> None:
    learn(training, 0)
    checkpoints.save(training, tmp_path / "step-00000008", {"step": 8}, main=True)
    shutil.copytree(tmp_path / "step-00000008", tmp_path / "step-00000009")
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.path.name == "step-00000008" and "it is of step 8" in found.damaged[0]


def test_one_that_is_not_in_place_yet_is_none(training: TrainingState, tmp_path: Path) -> None:
    learn(training, 0)
    assert checkpoints.latest(tmp_path) is None and checkpoints.latest(tmp_path / "nowhere") is None
    for step in (8, 9):
        checkpoints.save(training, tmp_path / f"step-{step:08d}", {"step": step}, main=True)
    (tmp_path / "step-00000009").rename(tmp_path / f"step-00000009{checkpoints.PART}")
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.path.name == "step-00000008" and found.damaged == ()


def test_a_damaged_later_one_does_not_push_out_the_good_ones(training: TrainingState, tmp_path: Path) -> None:
    learn(training, 0)
    for step in (3, 4, 8, 9):
        checkpoints.save(training, tmp_path / f"step-{step:08d}", {"step": step}, main=True)
    checkpoints.prune(tmp_path, keep=2, best=None, last="step-00000004")
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("call", ["save_file", "_flush"])
def test_a_full_disk_keeps_the_earlier_checkpoint(
    call: str, training: TrainingState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(training, 0)
    checkpoints.save(training, tmp_path / "step-00000001", {"step": 1}, main=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, call, full)
    for folder in (tmp_path / "step-00000001", tmp_path / "step-00000002"):
        with pytest.raises(sttm.SttmError, match="No space left on device; free some space"):
            checkpoints.save(training, folder, {"step": 2}, main=True)
    found = checkpoints.latest(tmp_path)
    assert found is not None and found[1]["step"] == 1
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "step-00000002").exists()


def test_the_last_and_the_best_are_kept(training: TrainingState, tmp_path: Path) -> None:
    learn(training, 0)
    for step in range(1, 6):
        checkpoints.save(training, tmp_path / f"step-{step:08d}", {"step": step}, main=True)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / "step-00000006.part")
    checkpoints.prune(tmp_path, keep=2, best="step-00000001", last="step-00000005")
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-0000000{n}" for n in (1, 4, 5)]


def test_only_the_main_process_writes(training: TrainingState, tmp_path: Path) -> None:
    checkpoints.save(training, tmp_path / "step-00000001", {"step": 1}, main=False)
    assert not (tmp_path / "step-00000001").exists()


def test_copies_hold_the_model_only(training: TrainingState, tmp_path: Path) -> None:
    learn(training, 0)
    checkpoints.save(training, tmp_path / "step-00000001", {"step": 1}, main=True)
    checkpoints.copy_model(tmp_path / "step-00000001", tmp_path / "best")
    names = {path.name for path in (tmp_path / "best").iterdir()}
    hashes = json.loads((tmp_path / "step-00000001" / checkpoints.HASHES).read_text())
    assert names == hashes.keys() - {checkpoints.STATE, checkpoints.PROGRESS}
    sttm.load(tmp_path / "best")
    flip(tmp_path / "step-00000001" / "model.safetensors", -30)
    with pytest.raises(sttm.SttmError, match="is damaged"):
        checkpoints.copy_model(tmp_path / "step-00000001", tmp_path / "best")
