"""Checkpoints that are complete or absent: written to a temporary folder, flushed, and renamed in one step.

A checkpoint is a model folder that `sttm.load` reads (with the averaged weights, if there is an average) and three more
files. `training.safetensors` has the optimizer's state by parameter name, and the raw weights if the model's are
averages; `training.json` has progress, settings and data. `hashes.json`, written last, has the SHA-256 of every other
file, by which damage shows: the run then continues from the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sttm import models
from sttm.config.parsing import read_json
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError, first_line, shown
from sttm.training.optimizer import Optimizer
from sttm.training.recipe import MovingAverage

STATE, PROGRESS, HASHES = "training.safetensors", "training.json", "hashes.json"
PART = ".part"


@dataclass
class TrainingState:
    """What a checkpoint keeps: the model (unwrapped), its optimizer, the moving average if any, the preprocessing."""

    model: Any
    optimizer: Optimizer
    average: MovingAverage | None
    preprocess: Preprocess

    @property
    def names(self) -> dict[Tensor, str]:
        """Return the name of each parameter."""
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the average of its weights, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()


@dataclass
class Progress:
    """How far a run has come; part of training.json."""

    step: int = 0
    evaluated: int = 0
    """The last step after which the evaluation, if one was due, is done."""
    best_top1: float = -1.0
    best: str | None = None
    """Name of the checkpoint that is best on the validation split."""
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Path -> reason of each training video that could not be read."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Progress:
        """Return the progress that training.json holds among other things."""
        return cls(**{key: values[key] for key in vars(cls()) if key in values})


def save(training: TrainingState, folder: Path, progress: Mapping[str, Any], main: bool) -> None:
    """Write a checkpoint; every process calls this (shards are gathered), the main one writes.

    Raises:
        SttmError: if it cannot be written (a full disk, a read-only folder); no part of it is left.
    """
    state = {
        f"optimizer.{training.names[parameter]}.{key}": _gathered(value)
        for parameter, entries in training.optimizer.state.items()
        for key, value in entries.items()
    }
    if training.average is not None:
        state |= {f"weights.{name}": _gathered(value) for name, value in training.model.named_parameters()}
    with training.averaged():
        weights = gathered_weights(training)
    if not main:
        return
    with _complete_or_absent(folder) as part:
        _write_model(training, part, weights)
        save_file(state, part / STATE)
        (part / PROGRESS).write_text(json.dumps(progress, indent=1) + "\n", encoding="utf-8")
        hashes = {path.name: _hash(path) for path in sorted(part.iterdir())}
        (part / HASHES).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def save_model(training: TrainingState, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the model alone, as `sttm.load` and `sttm predict` read it.

    Raises:
        SttmError: if it cannot be written; an earlier model in this folder is kept.
    """
    with _complete_or_absent(folder) as part:
        _write_model(training, part, weights)


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copy the model of a checkpoint, without the files that only training needs; raise SttmError if it is damaged."""
    if reason := damage(checkpoint):
        raise SttmError(f"the checkpoint {checkpoint} is damaged ({reason}), so that {folder} has no model")
    with _complete_or_absent(folder) as part:
        shutil.copytree(checkpoint, part, ignore=shutil.ignore_patterns(STATE, PROGRESS, HASHES), dirs_exist_ok=True)


def gathered_weights(training: TrainingState) -> dict[str, Tensor]:
    """Return the state dict on the CPU, gathered from its shards; every process calls this."""
    return {name: _gathered(value) for name, value in training.model.state_dict().items()}


class Found(NamedTuple):
    """A checkpoint to continue from."""

    path: Path
    progress: dict[str, Any]
    """The content of its training.json."""
    damaged: tuple[str, ...]
    """Later checkpoints that are damaged, each with the reason."""


def latest(folder: Path) -> Found | None:
    """Return the last whole checkpoint of a folder; None where there is none at all.

    Raises:
        SttmError: if there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            return Found(path, read_json(path / PROGRESS), tuple(damaged))
        damaged.append(f"{path}: {reason}")
    if damaged:
        more = f", and so are {len(damaged) - 1} before it" if damaged[1:] else ""
        raise SttmError(f"the last checkpoint is damaged ({damaged[0]}){more}; delete {folder} to start again")
    return None


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint; None for a whole one."""
    try:
        hashes = read_json(checkpoint / HASHES)
        names = {path.name for path in checkpoint.iterdir()} - {HASHES}
        if other := sorted(names ^ hashes.keys()):
            return f"{other[0]} is {'not in ' + HASHES if other[0] in names else 'missing'}"
        for name, value in hashes.items():
            if _hash(checkpoint / name) != value:
                return f"{name} is not as it was written"
        step = read_json(checkpoint / PROGRESS).get("step")
    except (OSError, SttmError) as error:
        return first_line(error).partition(";")[0]
    sound = type(step) is int and checkpoint.name.partition("-")[2] == f"{step:08d}"
    return None if sound else f"it is of step {shown(step)}"


def restore(training: TrainingState, folder: Path) -> None:
    """Load weights, average and optimizer state from a checkpoint; every process calls this."""
    weights, state = load_file(folder / "model.safetensors"), load_file(folder / STATE)
    raw = {name.removeprefix("weights."): value for name, value in state.items() if name.startswith("weights.")}
    with torch.no_grad():
        if training.average is not None:
            for name, average in training.average.averages.items():
                average.copy_(_like(weights[name], average))
        for name, parameter in training.model.named_parameters():
            parameter.copy_(_like(raw.get(name, weights[name]), parameter))
        for name, buffer in training.model.named_buffers():
            if name in weights:
                buffer.copy_(_like(weights[name], buffer))
    for parameter, name in training.names.items():
        prefix = f"optimizer.{name}."
        entries = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if entries:
            training.optimizer.state[parameter] = {
                key: value if value.ndim == 0 else _like(value, parameter) for key, value in entries.items()
            }


def prune(folder: Path, keep: int, best: str | None, last: str) -> None:
    """Delete all but the last `keep` checkpoints and the best one, and the leftovers of interrupted saves.

    Args:
        last: name of the one that was just saved; later ones are damaged, or the run would have continued from them.
    """
    for part in folder.glob(f"*{PART}"):
        shutil.rmtree(part, ignore_errors=True)
    paths = _checkpoints(folder)
    kept = {path.name for path in [path for path in paths if path.name <= last][-keep:]} | {best}
    for path in paths:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the last at the end."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(PART))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_model(training: TrainingState, folder: Path, weights: dict[str, Tensor]) -> None:
    models.save(training.model, folder, weights)
    training.preprocess.to_folder(folder)


def _gathered(value: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU, gathered from its shards."""
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().cpu().contiguous().clone()


def _like(value: Tensor, other: Tensor) -> Tensor:
    """Return a gathered tensor on the device, and in the shards, of another."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(other, DTensor):
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
    return value.to(other.device)


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to, which replaces `folder` by a rename once its bytes are on the disk."""
    part = folder.with_name(folder.name + PART)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for path in (*part.iterdir(), part):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError, SttmError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SttmError(f"cannot save {folder}: {reason}; free some space or choose another run.output") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
