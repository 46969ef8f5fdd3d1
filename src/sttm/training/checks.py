"""What must hold before a run starts or goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sttm.config import Settings
from sttm.errors import SttmError

#: Settings that may change between a run and its continuation: they say where and how it runs, not what is learnt.
FREE = {"data.root", "data.labels", "data.workers", "data.cache_gib", "optimizer.micro_batch", "evaluation", "run"}
BOUND = {"run.seed", "run.precision"}


def claim(folder: Path) -> None:
    """Makes the run's folder, and finds out now whether it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SttmError(f"cannot write to run.output={folder}: {error.strerror}; choose another folder") from error


def micro_batch(settings: Settings, world: int) -> int:
    """Clips that go through one process's model at once: as set, or all of its share of the batch."""
    return settings.optimizer.micro_batch or max(1, settings.optimizer.batch_size // world)


def lengths(settings: Settings, clips: int) -> tuple[int, int]:
    """Steps of the run, and between evaluations."""
    epoch = clips * settings.augment.repeats / settings.optimizer.batch_size
    steps = settings.optimizer.steps or max(1, math.ceil((settings.optimizer.epochs or 0) * epoch))
    if settings.merging.warmup_steps >= steps:
        raise SttmError(
            f"merging.warmup_steps={settings.merging.warmup_steps} takes all of the {steps} steps; give fewer"
        )
    return steps, settings.run.evaluate_every or max(1, math.ceil(epoch))


def same_run(settings: Settings, before: dict[str, Any], folder: Path) -> None:
    """Raises SttmError where a folder holds a run that learns something else."""
    now, then = (dict(_leaves(values)) for values in (settings.model_dump(mode="json"), before))
    for name in sorted(now.keys() | then.keys()):
        free = any(name == key or name.startswith(f"{key}.") for key in FREE) and name not in BOUND
        if now.get(name) != then.get(name) and not free:
            raise SttmError(
                f"{folder} holds a run with {name}={then.get(name)} and this config says {now.get(name)}; "
                "choose another run.output, or delete that folder to begin anew"
            )


def same_classes(now: Sequence[str], before: Sequence[str], folder: Path) -> None:
    """Raises SttmError where the head of a run's model was trained for other classes."""
    if list(now) != list(before):
        other = next(
            (f"{a!r} now and {b!r} there" for a, b in zip(now, before, strict=False) if a != b), "their number"
        )
        raise SttmError(
            f"{folder} holds a run on other classes ({other}); give it those again, or choose another run.output"
        )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
