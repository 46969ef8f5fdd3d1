"""Timing of a plain model and its merged variants, in turn, in one process and on the same clips.

Legend: B clips in a batch, T frames, C colours, H height, W width.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForVideoClassification

from sttm.backbones import backbone_of
from sttm.benchmark.memory import peak_bytes
from sttm.benchmark.timing import in_turn, quantiles
from sttm.devices import device_of, machine
from sttm.engines.engine import ENGINES, Engine, check_dtype, check_engine, make_engine
from sttm.engines.graph import shared_copy
from sttm.errors import SttmError
from sttm.evaluation.inference import forward, memory_errors
from sttm.merging import method_named
from sttm.models import load
from sttm.patching import api
from sttm.patching.schedule import check_compute

#: Turns before the timed ones, after the pass that measures memory: caches and allocators settle.
WARM_UP = 1


def _shape(family: str, classes: int = 400, **settings: int) -> nn.Module:
    """Return a model of a family, with the classes of Kinetics-400 if no other number is given."""
    config = AutoConfig.for_model(family, num_labels=classes, **settings)
    model: nn.Module = AutoModelForVideoClassification.from_config(config)
    return model


def _videomae(width: int, layers: int, heads: int) -> nn.Module:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return _shape("videomae", num_hidden_layers=layers, **sizes)


#: Standard shapes by name, built with random weights: the values of the weights do not change the time.
SHAPES: dict[str, Callable[[], nn.Module]] = {
    "videomae-s": lambda: _videomae(384, 12, 6),
    "videomae-b": lambda: _videomae(768, 12, 12),
    "videomae-l": lambda: _videomae(1024, 24, 16),
    "vivit-b": lambda: _shape("vivit"),
    "timesformer-b": lambda: _shape("timesformer"),
    "vjepa2-l": lambda: _shape("vjepa2", 174, frames_per_clip=16),  # Something-Something's classes
}


@dataclass(frozen=True)
class Variant:
    """One way to merge a model: not at all, or by a method to a share of its multiply-adds."""

    method: str
    compute: float
    macs: int
    model: nn.Module


@dataclass(frozen=True)
class Timed:
    """One way to run it: a variant on an engine."""

    variant: Variant
    engine: Engine
    plain: int
    """The number of the plain variant on the same engine in the same dtype."""


# Over 40 lines: most are the options and what they mean.
def run(
    models: Sequence[str],
    methods: Sequence[str] = ("sttm",),
    computes: Sequence[float] = (1.0, 0.8, 0.62, 0.4),
    *,
    batch: int = 1,
    dtypes: Sequence[str] = ("fp32",),
    engines: Sequence[str] = ("eager",),
    rounds: int = 10,
    device: str = "auto",
    advance: Callable[[int, int], None] = lambda forwards, total: None,
) -> dict[str, Any]:
    """Time models with and without merging: {"machine", "rows": [{"model", "method", "compute", ...}]}.

    In every round each variant of a model runs once, on the same random clips, starting with another variant each
    time. A row has, over the rounds: `latency_ms` of one batch (median and p90), `clips_per_s` at the median, and
    `speedup`, the median of the rounds' ratios plain over merged, on the same engine (`mode`) in the same dtype.
    `over_eager` is that ratio to the plain model on eager in fp32, None where that was not asked for. `ideal_speedup`
    is what the multiply-adds alone would give, 1 / compute; `compute` and `macs` (of one clip) are those of the plan.
    Merging is off the shelf; a model that was saved merged is also timed as it is ("as saved"), against its plain self.
    `peak_memory_mb` is the most memory (in MiB) in use during one untimed forward on eager: weights, clips, and the
    tensors between them; scratch space inside a kernel counts on a GPU only.

    Args:
        models: bundled names, folders, hub ids, or names of `SHAPES`, whose weights are random.
        computes: shares of the plain model's multiply-adds; 1 is the plain model, which is timed in any case.
        batch: clips that go through at once.
        dtypes: "fp32", "bf16", "int8".
        engines: names of `sttm.engines.engine.ENGINES`; each runs in those of the dtypes that it has.
        device: "auto", "cpu" or "cuda"; auto is CUDA where there is a CUDA device.
        advance: called after each forward with 1 and the number of all forwards.

    Raises:
        SttmError: for an unknown name, a wrong number or a target out of reach, before anything is timed; or if a
            batch does not fit into memory.
    """
    for method in methods:
        method_named(method)
    computes = sorted({check_compute(compute) for compute in computes}, reverse=True)
    where = device_of(device)
    _check(models, batch, dtypes, engines, rounds, where)
    pairs = [(engine, dtype) for dtype in dtypes for engine in engines if dtype in ENGINES[engine]]
    # A dry run finds mistakes before anything is timed: no target fails after an hour.
    counts = []
    for name in models:
        with torch.device("meta") if name in SHAPES else nullcontext():
            counts.append(len(_variants(_load(name), methods, computes)))
    forwards = sum(counts) * (len(pairs) * (rounds + WARM_UP) + sum(engine == "eager" for engine, _ in pairs))
    rows: list[dict[str, Any]] = []
    for name in models:
        variants = _variants(_load(name).to(where), methods, computes)
        label = f"{name} (random weights)" if name in SHAPES else name
        plain, backbone = variants[0].model, backbone_of(variants[0].model)
        shape = backbone.pixels_shape(batch, backbone.clip_shape(plain))
        pixels_BTCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with memory_errors(f"{batch} clips at once through {name}", where):
            timed = [
                Timed(variant, make_engine(engine, variant.model, dtype), number * len(variants))
                for number, (engine, dtype) in enumerate(pairs)
                for variant in variants
            ]
            measured = _measure(timed, pixels_BTCHW.to(where), rounds, lambda: advance(1, forwards))
        for each, figures in zip(timed, measured, strict=True):
            facts = {"batch": batch, "dtype": each.engine.dtype, "mode": each.engine.name}
            what = {"method": each.variant.method, "compute": each.variant.compute, "macs": each.variant.macs}
            rows.append({"model": label} | what | figures | facts)
    return {"machine": machine(where), "rows": rows}


def _check(
    models: Sequence[str], batch: int, dtypes: Sequence[str], engines: Sequence[str], rounds: int, device: torch.device
) -> None:
    """Refuse what cannot be timed."""
    if not models or not dtypes or not engines:
        raise SttmError("there is nothing to time; name at least one model, one dtype, and one engine")
    for dtype in dtypes:
        check_dtype(dtype)
        having = [engine for engine in engines if dtype in ENGINES.get(engine, ())]
        for engine in having or engines[:1]:
            check_engine(engine, dtype, device)
    for engine in engines:
        has = ENGINES.get(engine, ())
        check_engine(engine, next((dtype for dtype in dtypes if dtype in has), dtypes[0]), device)
    for name, value in (("batch", batch), ("rounds", rounds)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SttmError(f"{name}={value!r} is not a whole number of one or more; give one")


def _load(name: str) -> nn.Module:
    if name in SHAPES:
        return SHAPES[name]().eval()
    try:
        return load(name)
    except SttmError as error:
        raise SttmError(f"{error}; bench knows {', '.join(SHAPES)} too, with random weights") from error


def _variants(model: nn.Module, methods: Sequence[str], computes: Sequence[float]) -> list[Variant]:
    """Return every variant of a model, the plain one first; all of them share one set of weights."""
    plain, variants = shared_copy(model), []
    if api.is_merged(model):
        api.remove(plain)
        plan = api.plan_of(model)
        variants.append(Variant(f"{plan.method} (as saved)", plan.compute, plan.macs_after, model))
    variants.insert(0, Variant("plain", 1.0, api.macs(plain), plain))
    for method in methods:
        for compute in computes:
            if compute < 1:
                merged = shared_copy(plain)
                plan = api.apply(merged, compute, method)
                variants.append(Variant(method, plan.compute, plan.macs_after, merged))
    return variants


def _measure(
    timed: Sequence[Timed], pixels_BTCHW: Tensor, rounds: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """Return the measured fields of each row."""
    device = pixels_BTCHW.device

    def run_once(engine: Engine) -> None:
        forward(engine, pixels_BTCHW)
        advance()

    runs = [partial(run_once, each.engine) for each in timed]
    peaks = [
        peak_bytes(each.variant.model, pixels_BTCHW, go) if each.engine.name == "eager" else None
        for each, go in zip(timed, runs, strict=True)
    ]
    for turn in range(WARM_UP):
        in_turn(runs, turn, device)
    # A row for each round, a column for each of what is timed.
    seconds = np.array([in_turn(runs, turn, device)[0] for turn in range(rounds)])
    eager = [number for number, each in enumerate(timed) if (each.engine.name, each.engine.dtype) == ("eager", "fp32")]
    figures = []
    for each, taken, peak in zip(timed, seconds.T, peaks, strict=True):
        spread = quantiles(taken)
        figures.append(
            {
                "latency_ms": {name: round(1000 * spread[name], 3) for name in ("p50", "p90")},
                "clips_per_s": round(len(pixels_BTCHW) / spread["p50"], 3),
                "speedup": _ratio(seconds[:, each.plain], taken),
                "over_eager": _ratio(seconds[:, eager[0]], taken) if eager else None,
                "ideal_speedup": round(1 / each.variant.compute, 3),
                "peak_memory_mb": None if peak is None else round(peak / 2**20, 1),
            }
        )
    return figures


def _ratio(slow: np.ndarray, fast: np.ndarray) -> float:
    """Return the median of the rounds' ratios."""
    return round(float(np.median(slow / fast)), 3)
