"""Training steps of a plain model and its merged variants: time in turn, and peak memory, each in a process of its own.

Legend: B clips in a batch, T frames, C colours, H height, W width, n outputs of the model for a clip, K classes.
"""

from __future__ import annotations

import ctypes
import gc
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.benchmark.shapes import label_of, model_named
from sttm.benchmark.speed import Variant, checked, make_variants
from sttm.benchmark.timing import in_turn, quantiles, synchronize
from sttm.config.sections import OptimizerSettings
from sttm.devices import device_of, dtype_of, machine
from sttm.errors import SttmError
from sttm.evaluation.inference import memory_errors
from sttm.training.optimizer import make_optimizer

#: The parts of a step, in the order in which they run.
PARTS = ("forward", "backward", "optimizer")
CPU = torch.device("cpu")


# Over 40 lines: most are the options and what they mean.
def run(
    models: Sequence[str],
    methods: Sequence[str] = ("sttm",),
    computes: Sequence[float] = (1.0, 0.8, 0.62, 0.4),
    *,
    batches: Sequence[int] = (1,),
    dtypes: Sequence[str] = ("fp32",),
    rounds: int = 10,
    device: str = "auto",
    advance: Callable[[int, int], None] = lambda steps, total: None,
) -> dict[str, Any]:
    """Time training steps with and without merging: {"machine", "rows": [{"model", "method", "compute", ...}]}.

    Every variant is loaded in a process of its own; there it takes one step, which makes the optimizer's state, then
    one that is measured for its memory. Then in every round each process makes a step, one after the other, starting
    with another one each time. Mergers are learned, as those that `sttm train` puts in; the optimizer is AdamW.

    A row has, over the rounds: `step_ms` of one batch (median and p90), the medians of its parts `forward_ms` (with the
    loss), `backward_ms` and `optimizer_ms`, `clips_per_s` at the median, `speedup`, the median of the rounds' ratios
    plain over merged, `ideal_speedup`, 1 / compute, and `realised`, speedup over ideal. `peak_memory_mb` is the most
    memory (in MiB) that one step takes above what is there between steps (the loaded model, the optimizer's state and
    the clips): activations kept for the backward pass, gradients, and whatever lives shortly beside them. On a CPU it
    is read from the process's resident memory, None on a system without /proc; on a GPU from torch's allocator.
    `memory` is its share of the plain model's; `loaded_memory_mb` is the model with its optimizer's state.

    Args:
        models, methods, computes, batches, device: as in `sttm.benchmark.speed.run`.
        dtypes: "fp32", "bf16", the latter by autocast.
        advance: called after each step (the two first of a process are one) with 1 and the number of all.

    Raises:
        SttmError: for an unknown name, a wrong number or a target out of reach, before any step; or if a batch does
            not fit into memory.
    """
    where = device_of(device)
    computes = checked(models, methods, computes, batches, dtypes, rounds)
    for dtype in dtypes:
        dtype_of(dtype)
    dry = {name: make_variants(model_named(name, dry=True), methods, computes, learned=True) for name in models}
    total = sum(map(len, dry.values())) * len(batches) * len(dtypes) * (rounds + 1)
    rows: list[dict[str, Any]] = []
    for name, variants in dry.items():
        for dtype in dtypes:
            for batch in batches:
                jobs = [
                    (name, methods, computes, number, batch, dtype, str(where), torch.get_num_threads())
                    for number in range(len(variants))
                ]
                with _explained(f"{batch} clips at once through {name}"):
                    measured = _measure(jobs, rounds, lambda: advance(1, total))
                facts = {"batch": batch, "dtype": dtype, "mode": "train"}
                rows += [row | facts for row in _rows(label_of(name), variants, batch, *measured)]
    return {"machine": machine(where), "rows": rows}


Job = tuple[str, Sequence[str], Sequence[float], int, int, str, str, int]


def _measure(
    jobs: Sequence[Job], rounds: int, advance: Callable[[], None]
) -> tuple[np.ndarray, list[tuple[int, int | None]]]:
    """Return the seconds of each round, variant and part, and of each variant the bytes loaded and at the peak."""
    with ExitStack() as stack:
        # spawn, because a fork of a process with threads may hang; Ctrl-C ends this process, which ends the others
        pools = [
            stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
            )
            for _ in jobs
        ]
        memory = []
        for pool, job in zip(pools, jobs, strict=True):  # one after the other
            memory.append(pool.submit(_prepare, job).result())
            advance()

        def step(pool: ProcessPoolExecutor) -> list[float]:
            seconds = pool.submit(_step).result()
            advance()
            return seconds

        runs = [partial(step, pool) for pool in pools]
        return np.array([in_turn(runs, turn, CPU)[1] for turn in range(rounds)]), memory


def _rows(
    label: str,
    variants: Sequence[Variant],
    batch: int,
    seconds_RVP: np.ndarray,
    memory: Sequence[tuple[int, int | None]],
) -> list[dict[str, Any]]:
    """Return the rows of a model, plain first: rounds R, variants V, parts P."""
    rows, steps_RV, plain_peak = [], seconds_RVP.sum(-1), memory[0][1]
    for number, (variant, (loaded, peak)) in enumerate(zip(variants, memory, strict=True)):
        spread = quantiles(steps_RV[:, number])
        parts = np.median(seconds_RVP[:, number], axis=0)
        speedup = float(np.median(steps_RV[:, 0] / steps_RV[:, number]))
        rows.append(
            {"model": label, "method": variant.method, "compute": variant.compute, "macs": variant.macs}
            | {"step_ms": {name: round(1000 * spread[name], 3) for name in ("p50", "p90")}}
            | {f"{part}_ms": round(1000 * float(value), 3) for part, value in zip(PARTS, parts, strict=True)}
            | {
                "clips_per_s": round(batch / spread["p50"], 3),
                "speedup": round(speedup, 3),
                "ideal_speedup": round(1 / variant.compute, 3),
                "realised": round(speedup * variant.compute, 3),
                "peak_memory_mb": None if peak is None else round(peak / 2**20, 1),
                "memory": None if peak is None or not plain_peak else round(peak / plain_peak, 3),
                "loaded_memory_mb": round(loaded / 2**20, 1),
            }
        )
    return rows


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the end of a process that nobody asked for into one sentence."""
    try:
        yield
    except BrokenProcessPool as error:
        raise SttmError(
            f"a process that took training steps of {what} ended before its time, most likely for want of memory; use "
            "a smaller batch size, or fewer computes at once"
        ) from error


# --- in the process of a variant --------------------------------------------------------------------------------------


class Step:
    """A variant with its optimizer and clips: each call is one step of training."""

    def __init__(self, model: nn.Module, batch: int, dtype: str, device: torch.device) -> None:
        self.model, self.device, self.dtype = model.to(device).train(), device, dtype_of(dtype)
        self.optimizer = make_optimizer(model, OptimizerSettings(steps=1))
        backbone, config = backbone_of(model), cast(Any, model.config)
        draw = torch.Generator().manual_seed(0)
        shape = backbone.pixels_shape(batch, backbone.clip_shape(model))
        self.pixels_BTCHW = torch.randn(shape, generator=draw).to(device)
        self.labels_B = torch.randint(config.num_labels, (batch,), generator=draw).to(device)

    def __call__(self) -> list[float]:
        """Take a step; return the seconds of its parts."""
        times = [self._now()]
        loss = self._loss()
        times.append(self._now())
        loss.backward()
        times.append(self._now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(self._now())
        return np.diff(times).tolist()

    def peak(self) -> int | None:
        """Take a step; return the most bytes in use in it above those before it."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self()
            return torch.cuda.max_memory_allocated(self.device) - before
        _give_back()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        resident = _resident("VmRSS")
        self()
        most = _resident("VmHWM")
        return None if resident is None or most is None else most - resident

    @property
    def loaded(self) -> int:
        """Return the bytes of the weights and of the optimizer's state."""
        state = [value for entries in self.optimizer.state.values() for value in entries.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *(v for v in state if isinstance(v, Tensor))]
        return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())

    def _loss(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(self.pixels_BTCHW).logits
            # [B*n K] -> [B K]: a space-only TimeSformer answers for each frame (n = T), all others for the clip (n = 1)
            logits_BK = logits.unflatten(0, (len(self.pixels_BTCHW), -1)).mean(1)
            return nn.functional.cross_entropy(logits_BK, self.labels_B)

    def _now(self) -> float:
        synchronize(self.device)
        return perf_counter()


#: The step of this process.
_steps: list[Step] = []


def _prepare(job: Job) -> tuple[int, int | None]:
    """Load a variant and take two steps; return the bytes that it has loaded, and the peak of the second step."""
    name, methods, computes, number, batch, dtype, device, threads = job
    torch.set_num_threads(threads)
    variant = make_variants(model_named(name), methods, computes, learned=True)[number]
    with memory_errors(f"{batch} clips at once through {name}", torch.device(device)):
        step = Step(variant.model, batch, dtype, torch.device(device))
        step()
        peak = step.peak()
    _steps.append(step)
    return step.loaded, peak


def _step() -> list[float]:
    return _steps[0]()


def _give_back() -> None:
    """Give memory that is free in this process back to the system, where its C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(what: str) -> int | None:
    """Return the resident memory of this process in bytes, now (VmRSS) or at most (VmHWM); None without /proc."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{what}:\s+(\d+) kB", status, re.M)
    return 1024 * int(found[1]) if found else None
