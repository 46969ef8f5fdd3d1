"""Checkpoints that are complete or absent: written to a temporary folder, flushed, and renamed in one step.

A checkpoint is a model folder that `sttm.load` reads (with the averaged weights, if there is an average) and two more
files: `training.safetensors` (the optimizer's state by parameter name, and the raw weights if the model's are averages)
and `training.json` (progress, settings, and the size of every file, which shows damage).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sttm import models
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError, first_line
from sttm.training.optimizer import Optimizer
from sttm.training.recipe import MovingAverage

STATE, PROGRESS = "training.safetensors", "training.json"
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
        sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        (part / PROGRESS).write_text(json.dumps({**progress, "files": sizes}, indent=1) + "\n", encoding="utf-8")


def save_model(training: TrainingState, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the model alone, as `sttm.load` and `sttm predict` read it.

    Raises:
        SttmError: if it cannot be written; an earlier model in this folder is kept.
    """
    with _complete_or_absent(folder) as part:
        _write_model(training, part, weights)


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copy the model of a checkpoint, without the files that only training needs."""
    with _complete_or_absent(folder) as part:
        shutil.copytree(checkpoint, part, ignore=shutil.ignore_patterns(STATE, PROGRESS), dirs_exist_ok=True)


def gathered_weights(training: TrainingState) -> dict[str, Tensor]:
    """Return the state dict on the CPU, gathered from its shards; every process calls this."""
    return {name: _gathered(value) for name, value in training.model.state_dict().items()}


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the last complete checkpoint of a folder and its training.json; damaged ones are skipped."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        progress = _read_progress(path)
        if progress is not None:
            return path, progress
    return None


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


def prune(folder: Path, keep: int, best: str | None) -> None:
    """Delete all but the last `keep` checkpoints and the best one, and the leftovers of interrupted saves."""
    for part in folder.glob(f"*{PART}"):
        shutil.rmtree(part, ignore_errors=True)
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path.name != best:
            shutil.rmtree(path, ignore_errors=True)


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


def _read_progress(folder: Path) -> dict[str, Any] | None:
    """Return the content of training.json, or None for a folder that is not a complete checkpoint."""
    try:
        progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        complete = all((folder / name).stat().st_size == size for name, size in progress["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return progress if complete and not folder.name.endswith(PART) else None


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
