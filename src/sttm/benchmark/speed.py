"""Timing of a plain model and its merged variants, in turn, in one process and on the same clips.

Legend: B clips in a batch, T frames, C colours, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.benchmark.memory import peak_bytes
from sttm.benchmark.mergers import merger_share
from sttm.benchmark.shapes import label_of, model_named
from sttm.benchmark.timing import in_turn, quantiles
from sttm.devices import device_of, machine
from sttm.engines.engine import ENGINES, Engine, check_dtype, check_engine, make_engine
from sttm.engines.graph import shared_copy
from sttm.errors import SttmError
from sttm.evaluation.inference import forward, memory_errors
from sttm.merging import method_named
from sttm.patching import api
from sttm.patching.schedule import check_compute

#: Turns before the timed ones, after the pass that measures memory: caches and allocators settle.
WARM_UP = 1


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

    @property
    def eager(self) -> bool:
        """Return whether the model itself runs, so that its memory and its mergers can be measured."""
        return self.engine.name == "eager"


# Over 40 lines: most are the options and what they mean.
def run(
    models: Sequence[str],
    methods: Sequence[str] = ("sttm",),
    computes: Sequence[float] = (1.0, 0.8, 0.62, 0.4),
    *,
    batches: Sequence[int] = (1,),
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
    is what the multiply-adds alone would give, 1 / compute, and `realised` is speedup over ideal; `compute` and `macs`
    (of one clip) are those of the plan.
    Merging is off the shelf; a model that was saved merged is also timed as it is ("as saved"), against its plain self.
    Two figures are measured on eager only, in forwards that are not timed. `peak_memory_mb` is the most memory (in MiB)
    in use during one: weights, clips, and the tensors between them; scratch space inside a kernel counts on a GPU only.
    `merger_share` is the mergers' own share of the time (see `merger_share`).

    Args:
        models: bundled names, folders, hub ids, or names of `SHAPES`, whose weights are random.
        methods: "sttm" and names of baselines, all timed in the same turns.
        computes: shares of the plain model's multiply-adds; 1 is the plain model, which is timed in any case.
        batches: clips that go through at once; each number has turns of its own.
        dtypes: "fp32", "bf16", "int8".
        engines: names of `sttm.engines.engine.ENGINES`; each runs in those of the dtypes that it has.
        device: "auto", "cpu" or "cuda"; auto is CUDA where there is a CUDA device.
        advance: called after each forward with 1 and the number of all forwards.

    Raises:
        SttmError: for an unknown name, a wrong number or a target out of reach, before anything is timed; or if a
            batch does not fit into memory.
    """
    where = device_of(device)
    computes = checked(models, methods, computes, batches, dtypes, rounds)
    pairs = _pairs(dtypes, engines, where)
    # A dry run finds mistakes before anything is timed: no target fails after an hour.
    dry = [make_variants(model_named(name, dry=True), methods, computes) for name in models]
    forwards = len(batches) * sum(_forwards(len(variants), pairs, rounds) for variants in dry)
    rows: list[dict[str, Any]] = []
    for name in models:
        variants = make_variants(model_named(name).to(where), methods, computes)
        for batch in batches:
            rows += time_variants(label_of(name), variants, batch, pairs, rounds, lambda: advance(1, forwards))
    return {"machine": machine(where), "rows": rows}


def time_variants(
    label: str,
    variants: Sequence[Variant],
    batch: int,
    pairs: Sequence[tuple[str, str]],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return the rows of the variants of one model, plain first, on each pair of an engine and a dtype; see `run`."""
    plain = variants[0].model
    backbone, device = backbone_of(plain), next(plain.parameters()).device
    shape = backbone.pixels_shape(batch, backbone.clip_shape(plain))
    pixels_BTCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with memory_errors(f"{batch} clips at once through {label}", device):
        timed = [
            Timed(variant, make_engine(engine, variant.model, dtype), number * len(variants))
            for number, (engine, dtype) in enumerate(pairs)
            for variant in variants
        ]
        measured = _measure(timed, pixels_BTCHW, rounds, advance)
    rows = []
    for each, figures in zip(timed, measured, strict=True):
        facts = {"batch": batch, "dtype": each.engine.dtype, "mode": each.engine.name}
        what = {"method": each.variant.method, "compute": each.variant.compute, "macs": each.variant.macs}
        rows.append({"model": label} | what | figures | facts)
    return rows


def checked(
    models: Sequence[str],
    methods: Sequence[str],
    computes: Sequence[float],
    batches: Sequence[int],
    dtypes: Sequence[str],
    rounds: int,
) -> list[float]:
    """Return the computes, each once and the largest first; refuse what cannot be timed."""
    if not (models and batches and dtypes):
        raise SttmError("there is nothing to time; name at least one model, one batch, and one dtype")
    for method in methods:
        method_named(method)
    for dtype in dtypes:
        check_dtype(dtype)
    for name, value in (*(("batch", batch) for batch in batches), ("rounds", rounds)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SttmError(f"{name}={value!r} is not a whole number of one or more; give one")
    return sorted({check_compute(compute) for compute in computes}, reverse=True)


def _pairs(dtypes: Sequence[str], engines: Sequence[str], device: torch.device) -> list[tuple[str, str]]:
    """Return every engine with each of the dtypes that it has; refuse one that has none, or that cannot run here."""
    if not engines:
        raise SttmError("there is nothing to time on; name at least one engine")
    for dtype in dtypes:
        having = [engine for engine in engines if dtype in ENGINES.get(engine, ())]
        for engine in having or engines[:1]:
            check_engine(engine, dtype, device)
    for engine in engines:
        has = ENGINES.get(engine, ())
        check_engine(engine, next((dtype for dtype in dtypes if dtype in has), dtypes[0]), device)
    return [(engine, dtype) for dtype in dtypes for engine in engines if dtype in ENGINES[engine]]


def _forwards(variants: int, pairs: Sequence[tuple[str, str]], rounds: int) -> int:
    """Return how many forwards the variants of a model take with one batch."""
    eager = sum(engine == "eager" for engine, _ in pairs)
    return variants * len(pairs) * (rounds + WARM_UP) + eager * (variants + (variants - 1) * _passes(rounds))


def _passes(rounds: int) -> int:
    """Return how many forwards the mergers' share is the median of: as few as settle it where rounds are few."""
    return max(1, rounds // 3)


def make_variants(
    model: nn.Module, methods: Sequence[str], computes: Sequence[float], *, learned: bool = False
) -> list[Variant]:
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
                plan = api.apply(merged, compute, method, learned)
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
        peak_bytes(each.variant.model, pixels_BTCHW, go) if each.eager else None
        for each, go in zip(timed, runs, strict=True)
    ]
    for turn in range(WARM_UP):
        in_turn(runs, turn, device)
    # A row for each round, a column for each of what is timed.
    seconds = np.array([in_turn(runs, turn, device)[0] for turn in range(rounds)])
    shares = [
        _share(each, device, go, _passes(rounds)) if each.eager else None for each, go in zip(timed, runs, strict=True)
    ]
    eager = [number for number, each in enumerate(timed) if each.eager and each.engine.dtype == "fp32"]
    figures = []
    for each, taken, peak, share in zip(timed, seconds.T, peaks, shares, strict=True):
        spread, speedup = quantiles(taken), _ratio(seconds[:, each.plain], taken)
        figures.append(
            {
                "latency_ms": {name: round(1000 * spread[name], 3) for name in ("p50", "p90")},
                "clips_per_s": round(len(pixels_BTCHW) / spread["p50"], 3),
                "speedup": round(speedup, 3),
                "over_eager": round(_ratio(seconds[:, eager[0]], taken), 3) if eager else None,
                "ideal_speedup": round(1 / each.variant.compute, 3),
                "realised": round(speedup * each.variant.compute, 3),
                "peak_memory_mb": None if peak is None else round(peak / 2**20, 1),
                "merger_share": None if share is None else round(share, 4),
            }
        )
    return figures


def _share(timed: Timed, device: torch.device, forward: Callable[[], None], passes: int) -> float:
    """Return the mergers' share of a variant on eager; plain models have none and need no forward."""
    return merger_share(timed.variant.model, device, forward, passes) if timed.variant.compute < 1 else 0.0


def _ratio(slow: np.ndarray, fast: np.ndarray) -> float:
    """Return the median of the rounds' ratios."""
    return float(np.median(slow / fast))
