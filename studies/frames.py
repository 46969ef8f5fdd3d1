"""Cost over frames: time and peak memory of a clip of 16 to 256 frames, plain and merged, for families that take them.

`python studies/performance.py run frames` runs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from harness.tables import Row, markdown
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from sttm.backbones import backbone_of
from sttm.benchmark.shapes import shape
from sttm.benchmark.speed import make_variants, time_variants
from sttm.devices import machine

FRAMES = (16, 32, 64, 128, 256)
#: Blocks of a model and pixels at the side of a picture: at full size 256 frames take minutes on two cores.
LAYERS, SIDE, COMPUTE, ROUNDS = 4, 112, 0.5, 3
#: The models, and how their configs call frames and the side of a picture; in all else they are of their standard size.
FAMILIES = {
    "VideoMAE-B": ("videomae", "num_frames", "image_size"),
    "ViViT-B": ("vivit", "num_frames", "image_size"),
    "TimeSformer-B": ("timesformer", "num_frames", "image_size"),
    "V-JEPA 2 L": ("vjepa2", "frames_per_clip", "crop_size"),
}


def measure(
    frames: tuple[int, ...] = FRAMES, *, layers: int = LAYERS, side: int = SIDE, rounds: int = ROUNDS, **sizes: int
) -> dict[str, Any]:
    """Return the rows of every model at each number of frames, plain and merged; `sizes` go to all configs."""
    rows = []
    for label, (family, its_frames, its_side) in FAMILIES.items():
        for count in frames:
            settings = {its_frames: count, its_side: side, "num_hidden_layers": layers} | sizes
            model = shape(family, **settings).eval()
            backbone = backbone_of(model)
            grid = backbone.grid(model, backbone.clip_shape(model))
            variants = make_variants(model, ["sttm"], [COMPUTE])
            facts = {"frames": count, "tokens": grid.frames * grid.height * grid.width, "layers": layers, "side": side}
            rows += [row | facts for row in time_variants(label, variants, 1, [("eager", "fp32")], rounds)]
    return {"machine": machine(torch.device("cpu")), "rows": rows}


def write(source: Path) -> Path:
    """Write the table and the plot beside the measured file, the plot also in docs/; return the path of the table."""
    measured = json.loads(source.read_text(encoding="utf-8"))
    table, picture = source.with_suffix(".md"), source.with_suffix(".png")
    table.write_text(table_of(measured), encoding="utf-8")
    draw(picture, measured["rows"])
    (source.parents[2] / "docs" / picture.name).write_bytes(picture.read_bytes())
    return table


def table_of(measured: dict[str, Any]) -> str:
    """Return the table: a row for each model and number of frames."""
    first = measured["rows"][0]
    heads = ("model", "frames", "tokens", "plain: s a clip", f"merged to {COMPUTE}", "speed-up", "realised over ideal",
             "mergers' share", "plain: peak MiB", "merged")  # fmt: skip
    lines = []
    for plain, merged in _pairs(measured["rows"]):
        seconds = [row["latency_ms"]["p50"] / 1000 for row in (plain, merged)]
        peaks = [f"{row['peak_memory_mb']:,.0f}" for row in (plain, merged)]
        speed = f"{merged['speedup']:.2f}", f"{merged['realised']:.2f}", f"{100 * merged['merger_share']:.1f} %"
        cells = (plain["model"], str(plain["frames"]), f"{plain['tokens']:,}", *(f"{s:.3g}" for s in seconds), *speed)
        lines.append((*cells, *peaks))
    what = f"{first['layers']} blocks each, random weights, pictures of {first['side']} x {first['side']}, fp32, eager"
    origin = f"`results/performance/frames.json`, {measured['machine']}; {what}. Peaks include the weights."
    plot = "![Seconds a clip and peak memory over frames, plain and merged](frames.png)"
    return "\n\n".join((origin, markdown(heads, lines), plot)) + "\n"


def draw(path: Path, rows: list[Row]) -> None:
    """Plot seconds and peak memory over frames: a colour for each model, dashed where it is merged."""
    figure = Figure(figsize=(13, 4.8), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        pairs = [pair for pair in _pairs(rows) if pair[0]["model"] == name]
        for which, style in ((0, "-"), (1, "--")):
            line = [pair[which] for pair in pairs]
            x = [row["frames"] for row in line]
            look: dict[str, Any] = dict(color=f"C{number}", linestyle=style, marker="o", markersize=4)
            label = f"{name}, {'merged' if which else 'plain'}"
            left.plot(x, [row["latency_ms"]["p50"] / 1000 for row in line], label=label, **look)
            right.plot(x, [row["peak_memory_mb"] for row in line], **look)
    frames = sorted({row["frames"] for row in rows})
    for axes, what in ((left, "seconds a clip"), (right, "peak memory (MiB), weights included")):
        axes.set(xscale="log", yscale="log", xlabel="frames", ylabel=what)
        axes.set_xticks(frames, [str(count) for count in frames])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    # Memory spans less than a factor of ten: a tick for each doubling.
    right.yaxis.set_major_locator(LogLocator(2))
    right.yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path)


def _pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Return the plain and the merged row of each model and number of frames, which follow each other."""
    return list(zip(rows[::2], rows[1::2], strict=True))
