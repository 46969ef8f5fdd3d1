"""Checkpoints that are whole or not there: written aside, flushed, and put in place by one rename.

A checkpoint is a model folder that `sttm.load` reads (with the averaged weights, where there are any) and, beside
them, `training.safetensors` (the optimizer's state, and the raw weights if the model's are averages) and
`training.json` (step, figures, settings, and the size of every file, by which a damaged one is known).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sttm import models
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError
from sttm.training.recipe import MovingAverage

STATE, PROGRESS = "training.safetensors", "training.json"
PART = ".part"


@dataclass
class Training:
    """What one process trains: the model (unwrapped), its optimizer, and the average, if one is kept."""

    model: Any
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    preprocess: Preprocess

    @property
    def names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}


def save(training: Training, folder: Path, progress: Mapping[str, Any], main: bool) -> None:
    """Writes a checkpoint; every process calls it (shards are gathered), the main one writes.

    Raises:
        SttmError: if it cannot be written (a full disk, a folder without the right to write); nothing is left of it.
    """
    state = {f"optimizer.{name}.{key}": _whole(value) for name, key, value in _optimizer_state(training)}
    if training.average is not None:
        state |= {f"weights.{name}": _whole(value) for name, value in training.model.named_parameters()}
    with training.average.in_place() if training.average is not None else nullcontext():
        weights = whole_weights(training)
    if not main:
        return
    with _whole_or_not_there(folder) as part:
        _write_model(training, part, weights)
        save_file(state, part / STATE)
        sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        (part / PROGRESS).write_text(json.dumps({**progress, "files": sizes}, indent=1) + "\n", encoding="utf-8")


def save_model(training: Training, folder: Path, weights: dict[str, Tensor]) -> None:
    """Writes the model alone, as `sttm.load` and `sttm predict` take it.

    Raises:
        SttmError: if it cannot be written; what was there before is still there.
    """
    with _whole_or_not_there(folder) as part:
        _write_model(training, part, weights)


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copies the model of a checkpoint, without what only training needs."""
    with _whole_or_not_there(folder) as part:
        shutil.copytree(checkpoint, part, ignore=shutil.ignore_patterns(STATE, PROGRESS), dirs_exist_ok=True)


def whole_weights(training: Training) -> dict[str, Tensor]:
    """The state dict on the CPU, gathered from its shards; every process calls it."""
    return {name: _whole(value) for name, value in training.model.state_dict().items()}


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last whole checkpoint among those in a folder, with its progress; damaged ones are passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        progress = _progress_of(path)
        if progress is not None:
            return path, progress
    return None


def restore(training: Training, folder: Path) -> None:
    """Brings weights, average and optimizer to where they were; every process calls it."""
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
    """Leaves the last `keep` checkpoints and the best one; takes away what an interrupted save left."""
    for part in folder.glob(f"*{PART}"):
        shutil.rmtree(part, ignore_errors=True)
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path.name != best:
            shutil.rmtree(path, ignore_errors=True)


def _write_model(training: Training, folder: Path, weights: dict[str, Tensor]) -> None:
    models.save(training.model, folder, weights)
    training.preprocess.to_folder(folder)


def _optimizer_state(training: Training) -> list[tuple[str, str, Tensor]]:
    names = training.names
    return [
        (names[parameter], key, value)
        for parameter, entries in training.optimizer.state.items()
        for key, value in entries.items()
    ]


def _whole(value: Tensor) -> Tensor:
    """A tensor on the CPU by itself, gathered from its shards."""
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().cpu().contiguous().clone()


def _like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor laid out as another: on its device, in its shards."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(other, DTensor):
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
    return value.to(other.device)


def _progress_of(folder: Path) -> dict[str, Any] | None:
    """What training.json says, or None for a folder that is not a whole checkpoint."""
    try:
        progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in progress["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return progress if whole and not folder.name.endswith(PART) else None


@contextmanager
def _whole_or_not_there(folder: Path) -> Iterator[Path]:
    """Gives a folder to write to, which takes the place of `folder` by a rename once its bytes are on the disk."""
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
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SttmError(f"cannot save {folder}: {reason}; make room there or choose another run.output") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
