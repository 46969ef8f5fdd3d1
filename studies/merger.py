"""What the merger costs beside the model that it is in: multiply-adds at large token grids, and time where it is asked.

The novelty of a token is its distance from all tokens before it in its window, which is quadratic in the window; and
each slot is an average of its window's tokens, by index on a CPU and as a product of matrices elsewhere. Both are
counted here, and what remains where averages are by index.

How to run, from the project's root; `--time` on a machine where nothing else runs:
    python studies/merger.py [--time]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness.runs import RESULTS, commit
from harness.tables import Row, markdown, show_in_docs
from harness.training import device
from torch import nn

import sttm
from sttm.backbones import backbone_of
from sttm.benchmark.shapes import SHAPES, shape
from sttm.devices import machine
from sttm.merging.tokens import Tokens

FOLDER = RESULTS / "performance"
COMPUTES = (0.62, 0.4)
ROUNDS = 5


#: The models, on the meta device: only their shapes count.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "VideoMAE-B, 16 x 224": SHAPES["videomae-b"],
    "V-JEPA 2 L, 16 x 256": SHAPES["vjepa2-l"],
    "V-JEPA 2 L, 64 x 256": lambda: shape("vjepa2", 174, frames_per_clip=64),
    "TimeSformer-B, 16 x 448": lambda: shape("timesformer", num_frames=16, image_size=448),
}


def rows_of(name: str, timed: bool) -> list[Row]:
    """Return a row for each compute of one model; the mergers of each together."""
    with torch.device("meta"):
        model: Any = MODELS[name]().eval()
    blocks, rows = backbone_of(model).blocks(model), []
    for compute in COMPUTES:
        with torch.device("meta"):
            plan = sttm.apply(model, compute)
        first = plan.mergers[0]
        everything = novelty = 0
        seconds = 0.0
        for merger in plan.mergers:
            module: Any = blocks[merger.layer].merger
            window = merger.frames_before // merger.frames * merger.tokens_before
            everything += module.total_macs(merger.frames_before, merger.tokens_before)
            novelty += module.selector.macs(merger.frames, window, module.dim)
            seconds += _seconds(module) if timed else 0.0
        rate = plain_rate(module.dim) if timed else 0.0
        rows.append({
            "model": name, "compute": plan.compute, "tokens": first.frames_before * first.tokens_before,
            "window": first.frames_before // first.frames * first.tokens_before, "macs": plan.macs_after,
            "macs_before": plan.macs_before, "merger_macs": everything, "novelty_macs": novelty,
            "seconds": round(seconds, 4) if timed else None,
            # The rest of the model at the rate of its own linear layers.
            "time_share": round(seconds / (seconds + (plan.macs_after - everything) / rate), 4) if timed else None,
        })  # fmt: skip
        sttm.remove(model)
    return rows


@torch.inference_mode()
def _seconds(on_meta: Any) -> float:
    """Return the seconds of one merger of that shape, the median of some rounds."""
    sizes = dict(dim=on_meta.dim, frames=on_meta.frames, tokens=on_meta.tokens)
    module = type(on_meta)(**sizes, frames_in=on_meta.frames_in, tokens_in=on_meta.tokens_in)
    x_BTSC = torch.randn(1, module.frames_in, module.tokens_in, module.dim)
    given = Tokens.of_grid(x_BTSC, 1, module.tokens_in)
    return _timed(lambda: module(given, mapped=False))


@torch.inference_mode()
def plain_rate(width: int) -> float:
    """Return the multiply-adds a second of a linear layer of that width on 1,024 tokens."""
    layer, x_NC = nn.Linear(width, 4 * width), torch.randn(1024, width)
    return 1024 * width * 4 * width / _timed(lambda: layer(x_NC))


def _timed(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def table_of(measured: dict[str, Any]) -> str:
    """Return the table of the rows."""
    heads = ("model", "compute", "tokens, in a window", "mergers, GMACs", "of the plain model", "of the merged one",
             "novelty alone, of the merged one", "time, of the merged one")  # fmt: skip
    lines = [
        (
            row["model"],
            f"{row['compute']:.2f}",
            f"{row['tokens']:,}, {row['window']:,}",
            f"{row['merger_macs'] / 1e9:.2f}",
            f"{100 * row['merger_macs'] / row['macs_before']:.2f} %",
            f"{100 * row['merger_macs'] / row['macs']:.2f} %",
            f"{100 * row['novelty_macs'] / (row['macs'] - row['merger_macs'] + row['novelty_macs']):.2f} %",
            "not measured" if row["time_share"] is None else f"{100 * row['time_share']:.1f} %",
        )
        for row in measured["rows"]
    ]
    return f"`python studies/merger.py`, {measured['machine']}.\n\n{markdown(heads, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="time the mergers too")
    timed = parser.parse_args().time
    rows = [row for name in MODELS for row in rows_of(name, timed)]
    where = machine(device()) if timed else "multiply-adds alone"
    measured = {"commit": commit(), "machine": where, "rows": rows}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "merger.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "merger.md").write_text(table_of(measured), encoding="utf-8")
    show_in_docs(FOLDER / "merger.md")


if __name__ == "__main__":
    main()
