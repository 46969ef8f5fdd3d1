"""Speed on one GPU in bf16: plain, the merger, ToMe and random dropping, on eager, CUDA graphs and torch.compile.

Every model's variants are timed in turn on the same clips, and the median of the rounds counts. `share_of_rate` is the
model's multiply-adds a second over those of a large matrix product on the same card; `realised` is the speed-up over
1 / compute. What does not fit into the memory, or into eight minutes, is left out and named in `left_out`; eager and
CUDA graphs come first, since a compiler takes most of the time.

How to run, from the project's root, with nothing else on the card:
    python studies/speed_gpu.py run            writes results/speed_gpu/speed.json and its table, shown in docs/
    python studies/speed_gpu.py run --smoke F  tiny models on the CPU, written to the folder F: whether it runs at all
    python studies/speed_gpu.py table          the table anew
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness.runs import RESULTS, commit
from harness.tables import Row, markdown, show_in_docs
from torch import Tensor, nn

import sttm
from sttm.backbones import backbone_of
from sttm.benchmark.memory import peak_bytes
from sttm.benchmark.shapes import SHAPES, shape
from sttm.benchmark.timing import in_turn, quantiles
from sttm.devices import machine
from sttm.engines.graph import shared_copy
from sttm.errors import SttmError

FOLDER = RESULTS / "speed_gpu"
METHODS = ("plain", "sttm", "tome", "random")
COMPUTE, BATCHES, ROUNDS, SECONDS = 0.62, (1, 8, 32), 20, 480.0
#: Seconds that are kept for one compilation.
COMPILING = 60.0
FULL = {name: SHAPES[name] for name in ("videomae-b", "videomae-l", "vivit-b", "timesformer-b", "vjepa2-l")}


TINY: dict[str, Callable[[], nn.Module]] = {
    "videomae": partial(
        shape, "videomae", 5, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        image_size=64, num_frames=8,
    )
}  # fmt: skip


@dataclass
class Bench:
    """One run of the study: what it times, where, and until when."""

    models: dict[str, Callable[[], nn.Module]]
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Return what was measured."""
        end = time.perf_counter() + self.seconds
        rate = matrix_rate(self.device)
        graphs = ("graphs",) if self.device.type == "cuda" else ()
        for modes in (("eager", *graphs), ("compile",)):
            for name, make in self.models.items():
                variants = self._variants(make)
                for batch in self.batches:
                    for mode in modes:
                        need = COMPILING * len(variants) if mode == "compile" else 0
                        if time.perf_counter() + need * (self.device.type == "cuda") > end:
                            self.left_out.append(f"{name}, batch {batch}, {mode}: no time left")
                            continue
                        try:
                            self._measure(name, variants, batch, mode, rate)
                        except RuntimeError as error:  # out of memory, or a graph that cannot be captured
                            self.left_out.append(f"{name}, batch {batch}, {mode}: {str(error).splitlines()[0][:200]}")
                del variants
        return {
            "machine": machine(self.device), "commit": commit(), "matrix_macs_per_s": rate,
            "rows": self.rows, "left_out": self.left_out,
        }  # fmt: skip

    def _variants(self, make: Callable[[], nn.Module]) -> dict[str, nn.Module]:
        """Return the model and its merged variants, of one set of weights."""
        torch.manual_seed(0)
        plain = make().eval().to(self.device, torch.bfloat16)
        variants = {"plain": plain}
        for method in METHODS[1:]:
            merged = shared_copy(plain)
            try:
                sttm.apply(merged, COMPUTE, method)
            except SttmError as error:  # a family that cannot merge inside its blocks
                self.left_out.append(str(error))
                continue
            variants[method] = merged
        return variants

    @torch.inference_mode()
    def _measure(self, name: str, variants: dict[str, nn.Module], batch: int, mode: str, rate: float) -> None:
        """Time the variants of one model in turn, and add their rows."""
        plain = variants["plain"]
        backbone = backbone_of(plain)
        pixels = torch.randn(backbone.pixels_shape(batch, backbone.clip_shape(plain)), device=self.device)
        pixels = pixels.to(torch.bfloat16)
        runs = [self._runner(model, pixels, mode) for model in variants.values()]
        peaks = [
            peak_bytes(model, pixels, run) if mode == "eager" else None
            for model, run in zip(variants.values(), runs, strict=True)
        ]
        in_turn(runs, 0, self.device)  # not timed: kernels are chosen and memory is taken
        taken = list(zip(*(in_turn(runs, turn, self.device)[0] for turn in range(self.rounds)), strict=True))
        for (method, model), seconds, peak in zip(variants.items(), taken, peaks, strict=True):
            spread, macs = quantiles(seconds), sttm.macs(model)
            compute = macs / sttm.macs(plain)
            speedup = median(one / other for one, other in zip(taken[0], seconds, strict=True))
            self.rows.append({
                "model": f"{name} (random weights)", "method": method, "compute": compute, "macs": macs,
                "latency_ms": {level: round(1000 * spread[level], 3) for level in ("p50", "p90")},
                "clips_per_s": round(batch / spread["p50"], 3), "speedup": round(speedup, 3), "over_eager": None,
                "ideal_speedup": round(1 / compute, 3), "realised": round(speedup * compute, 3),
                "share_of_rate": round(batch * macs / spread["p50"] / rate, 4),
                "peak_memory_mb": None if peak is None else round(peak / 2**20, 1),
                "batch": batch, "dtype": "bf16", "mode": mode,
            })  # fmt: skip

    def _runner(self, model: nn.Module, pixels: Tensor, mode: str) -> Callable[[], object]:
        """Return what runs a model once on these clips."""
        if mode == "eager":
            return lambda: model(pixels)
        if mode == "compile":
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="inductor" if self.device.type == "cuda" else "eager")
            compiled(pixels)
            return lambda: compiled(pixels)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a capture wants warm kernels, on a stream of its own
            for _ in range(3):
                model(pixels)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(pixels)
        return graph.replay


def matrix_rate(device: torch.device) -> float:
    """Return the multiply-adds a second of a large square matrix product in bf16."""
    side, rounds = (8192, 20) if device.type == "cuda" else (256, 3)
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    taken = [in_turn([lambda: one @ one], 0, device)[0][0] for _ in range(rounds + 2)]
    return side**3 / median(taken[2:])


def table_of(measured: dict[str, Any]) -> str:
    """Return the table of the rows."""
    heads = ("model", "batch", "mode", "method", "compute", "ms a batch (p90)", "clips/s", "speed-up", "over ideal",
             "of the matrix rate", "peak, MiB")  # fmt: skip
    lines = [
        (
            row["model"],
            str(row["batch"]),
            row["mode"],
            row["method"],
            f"{row['compute']:.2f}",
            f"{row['latency_ms']['p50']:.1f} ({row['latency_ms']['p90']:.1f})",
            f"{row['clips_per_s']:.0f}",
            f"{row['speedup']:.2f}",
            f"{row['realised']:.2f}",
            f"{100 * row['share_of_rate']:.0f} %",
            "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}",
        )
        for row in measured["rows"]
    ]
    rate = f"A matrix product in bf16: {measured['matrix_macs_per_s'] / 1e12:.3g} T multiply-adds a second."
    head = f"`python studies/speed_gpu.py run`, {measured['machine']}, commit {measured['commit']}. {rate}"
    left = [f"Left out: {'; '.join(measured['left_out'])}."] if measured["left_out"] else []
    return "\n\n".join([head, markdown(heads, lines), *left]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help="tiny models on the CPU; write to this folder")
    given = parser.parse_args(arguments)
    folder: Path = given.smoke or FOLDER
    if given.what == "run":
        if given.smoke is None and not torch.cuda.is_available():
            parser.error("there is no CUDA device; `run --smoke FOLDER` runs on the CPU")
        device = torch.device("cuda" if given.smoke is None else "cpu")
        bench = Bench(FULL, BATCHES, ROUNDS, SECONDS, device)
        if given.smoke is not None:
            bench = Bench(TINY, (2,), 1, SECONDS, device)
        measured = bench.run()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "speed.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    measured = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    (folder / "table.md").write_text(table_of(measured), encoding="utf-8")
    if given.smoke is None:
        show_in_docs(folder / "table.md")


if __name__ == "__main__":
    main()
