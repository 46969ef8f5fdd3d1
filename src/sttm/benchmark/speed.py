"""Timing of a plain model and its merged variants, in turn, in one process and on the same clips.

Legend: B clips in a batch, T frames, C colours, H height, W width.
"""

import copy
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
from sttm.devices import DTYPES, device_of, dtype_of, machine
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
    """One way to run a model: plain, or merged by a method to a share of its multiply-adds."""

    method: str
    compute: float
    macs: int
    model: nn.Module


# Over 40 lines: most are the options and what they mean.
def run(
    models: Sequence[str],
    methods: Sequence[str] = ("sttm",),
    computes: Sequence[float] = (1.0, 0.8, 0.62, 0.4),
    *,
    batch: int = 1,
    dtypes: Sequence[str] = ("fp32",),
    rounds: int = 10,
    device: str = "auto",
    advance: Callable[[int, int], None] = lambda forwards, total: None,
) -> dict[str, Any]:
    """Time models with and without merging: {"machine", "rows": [{"model", "method", "compute", ...}]}.

    In every round each variant of a model runs once, on the same random clips, starting with another variant each
    time. A row has, over the rounds: `latency_ms` of one batch (median and p90), `clips_per_s` at the median, and
    `speedup`, the median of the rounds' ratios plain over merged. `ideal_speedup` is what the multiply-adds alone
    would give, 1 / compute; `compute` and `macs` (of one clip) are those of the plan. Merging is off the shelf; a
    model that was saved merged is also timed as it is ("as saved"), against its plain self. `peak_memory_mb` is the
    most memory (in MiB) in use during one untimed forward: weights, clips, and the tensors between them; scratch
    space inside a kernel counts on a GPU only.

    Args:
        models: bundled names, folders, hub ids, or names of `SHAPES`, whose weights are random.
        computes: shares of the plain model's multiply-adds; 1 is the plain model, which is timed in any case.
        batch: clips that go through at once.
        dtypes: "fp32", or "bf16" by autocast.
        device: "auto", "cpu" or "cuda"; auto is CUDA where there is a CUDA device.
        advance: called after each forward with 1 and the number of all forwards.

    Raises:
        SttmError: for an unknown name, a wrong number or a target out of reach, before anything is timed; or if a
            batch does not fit into memory.
    """
    for method in methods:
        method_named(method)
    computes = sorted({check_compute(compute) for compute in computes}, reverse=True)
    _check(models, batch, dtypes, rounds)
    where = device_of(device)
    # A dry run finds mistakes before anything is timed: no target fails after an hour.
    counts = []
    for name in models:
        with torch.device("meta") if name in SHAPES else nullcontext():
            counts.append(len(_variants(_load(name), methods, computes)))
    forwards = sum(counts) * len(dtypes) * (rounds + WARM_UP + 1)
    rows: list[dict[str, Any]] = []
    for name in models:
        variants = _variants(_load(name).to(where), methods, computes)
        label = f"{name} (random weights)" if name in SHAPES else name
        plain, backbone = variants[0].model, backbone_of(variants[0].model)
        shape = backbone.pixels_shape(batch, backbone.clip_shape(plain))
        pixels_BTCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for dtype in dtypes:
            with memory_errors(f"{batch} clips at once through {name}", where):
                clips_BTCHW = pixels_BTCHW.to(where)
                measured = _measure(variants, clips_BTCHW, DTYPES[dtype], rounds, lambda: advance(1, forwards))
            facts = {"batch": batch, "dtype": dtype, "mode": "eager"}
            for variant, figures in zip(variants, measured, strict=True):
                what = {"method": variant.method, "compute": variant.compute, "macs": variant.macs}
                rows.append({"model": label} | what | figures | facts)
    return {"machine": machine(where), "rows": rows}


def _check(models: Sequence[str], batch: int, dtypes: Sequence[str], rounds: int) -> None:
    """Refuse what cannot be timed."""
    if not models or not dtypes:
        raise SttmError("there is nothing to time; name at least one model and one of " + ", ".join(DTYPES))
    for dtype in dtypes:
        dtype_of(dtype)
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
    plain, variants = _copy(model), []
    if api.is_merged(model):
        api.remove(plain)
        plan = api.plan_of(model)
        variants.append(Variant(f"{plan.method} (as saved)", plan.compute, plan.macs_after, model))
    variants.insert(0, Variant("plain", 1.0, api.macs(plain), plain))
    for method in methods:
        for compute in computes:
            if compute < 1:
                merged = _copy(plain)
                plan = api.apply(merged, compute, method)
                variants.append(Variant(method, plan.compute, plan.macs_after, merged))
    return variants


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy with modules of its own and the same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _measure(
    variants: Sequence[Variant], pixels_BTCHW: Tensor, dtype: torch.dtype, rounds: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """Return the measured fields of each variant's row."""
    device = pixels_BTCHW.device

    def run_once(model: nn.Module) -> None:
        forward(model, pixels_BTCHW, dtype)
        advance()

    runs = [partial(run_once, variant.model) for variant in variants]
    peaks = [peak_bytes(variant.model, pixels_BTCHW, go) for variant, go in zip(variants, runs, strict=True)]
    for turn in range(WARM_UP):
        in_turn(runs, turn, device)
    # A row for each round, a column for each variant.
    seconds = np.array([in_turn(runs, turn, device)[0] for turn in range(rounds)])
    speedups = np.median(seconds[:, :1] / seconds, axis=0)
    figures = []
    for variant, taken, speedup, peak in zip(variants, seconds.T, speedups, peaks, strict=True):
        spread = quantiles(taken)
        figures.append(
            {
                "latency_ms": {name: round(1000 * spread[name], 3) for name in ("p50", "p90")},
                "clips_per_s": round(len(pixels_BTCHW) / spread["p50"], 3),
                "speedup": round(float(speedup), 3),
                "ideal_speedup": round(1 / variant.compute, 3),
                "peak_memory_mb": round(peak / 2**20, 1),
            }
        )
    return figures
