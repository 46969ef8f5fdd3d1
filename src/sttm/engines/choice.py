"""Which engine runs a model fastest on this machine: measured once, then remembered on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sttm.devices import machine
from sttm.engines.engine import ENGINES, Engine, available, check_dtype, check_engine, make_engine
from sttm.engines.graph import pixels_shape
from sttm.errors import SttmError, first_line
from sttm.patching import api

#: Seconds that each engine is timed for at most, in at least so many rounds.
SECONDS, ROUNDS = 3.0, 2
#: Packages whose versions a choice holds for.
VERSIONS = ("sttm", "torch", "transformers", "onnxruntime", "openvino")


def place(
    name: str,
    model: nn.Module,
    dtype: str = "fp32",
    *,
    batch: int = 8,
    note: Callable[[str], None] = lambda sentence: None,
) -> nn.Module:
    """Put a model on an engine by name, or on the fastest by "auto".

    Args:
        model: plain or merged, on its device.
        batch: clips that go through at once, which "auto" measures with.
        note: called with a sentence for what "auto" measured, and what it chose.

    Raises:
        SttmError: see `engine.check_engine`.
    """
    return fastest(model, dtype, batch, note) if name == "auto" else make_engine(name, model, dtype)


def check_choice(name: str, dtype: str, device: torch.device) -> None:
    """Raise SttmError for an engine that cannot be had, before anything is loaded."""
    check_dtype(dtype)
    if name == "auto" and not available(dtype, device):
        name = next(engine for engine, dtypes in ENGINES.items() if dtype in dtypes)
    if name != "auto":
        check_engine(name, dtype, device)


def fastest(model: nn.Module, dtype: str, batch: int, note: Callable[[str], None]) -> Engine:
    """Return the model on the engine that was fastest on batches of this size, measured now or in an earlier run."""
    device = next(model.parameters()).device
    check_choice("auto", dtype, device)
    names = available(dtype, device)
    facts = _facts(model, dtype, batch, device, names)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / "engines" / f"{digest[:32]}.json"
    chosen = _remembered(file, names)
    if chosen is not None:
        note(f"engine {chosen}, as measured before ({file})")
        return make_engine(chosen, model, dtype)
    note(f"measuring {', '.join(names)} on {batch} clips at once, which is done once for a model and a machine")
    engines, seconds = _measured(model, dtype, batch, names, note)
    chosen = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1000 * taken:.0f} ms" for name, taken in sorted(seconds.items(), key=lambda x: x[1]))
    note(f"engine {chosen} is fastest ({times})")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        try:
            part.write_text(json.dumps({"engine": chosen, "seconds": seconds, "of": facts}, indent=2) + "\n")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        note(f"the choice of engine cannot be kept in {file.parent} ({error.strerror})")
    return engines[chosen]


def cache_folder() -> Path:
    """Return the folder for what sttm remembers: STTM_CACHE, or sttm/ in the user's cache folder."""
    own = os.environ.get("STTM_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sttm"


def _measured(
    model: nn.Module, dtype: str, batch: int, names: list[str], note: Callable[[str], None]
) -> tuple[dict[str, Engine], dict[str, float]]:
    """Return the engines that run the model, and the median seconds that a batch takes on each, timed turn by turn."""
    pixels = torch.randn(pixels_shape(model, batch), generator=torch.Generator().manual_seed(0))
    engines: dict[str, Engine] = {}
    for name in names:
        try:
            engines[name] = make_engine(name, model, dtype)
            _seconds(engines[name], pixels)  # compiles, and lets allocators settle
        except (SttmError, RuntimeError) as error:
            engines.pop(name, None)
            note(f"engine {name} does not run this model: {first_line(error)[:200]}")
    if not engines:
        raise SttmError("no engine runs this model on such batches; give a smaller batch size, or --engine eager")
    taken: dict[str, list[float]] = {name: [] for name in engines}
    while any(len(times) < ROUNDS or sum(times) < SECONDS for times in taken.values()):
        for name, engine in engines.items():
            if len(taken[name]) < ROUNDS or sum(taken[name]) < SECONDS:
                taken[name].append(_seconds(engine, pixels))
    return engines, {name: median(times) for name, times in taken.items()}


def _seconds(engine: Engine, pixels: Tensor) -> float:
    started = time.perf_counter()
    engine(pixels).logits.cpu()
    return time.perf_counter() - started


def _facts(model: nn.Module, dtype: str, batch: int, device: torch.device, names: list[str]) -> dict[str, Any]:
    """Return all that the speed of a model depends on; the values of its weights are not among it."""
    inner: Any = api.unwrap(model)
    plan = asdict(api.plan_of(inner)) if api.is_merged(inner) else None
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in inner.state_dict().items()}
    facts = {"class": type(inner).__name__, "tensors": shapes, "heads": inner.config.num_attention_heads, "plan": plan}
    facts |= {"dtype": dtype, "batch": batch, "machine": machine(device), "engines": names}
    return facts | {"versions": {name: _version(name) for name in VERSIONS}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _remembered(file: Path, names: list[str]) -> str | None:
    """Return the engine that a file names, None where it names none of these."""
    try:
        chosen = json.loads(file.read_text(encoding="utf-8"))["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return chosen if chosen in names else None
