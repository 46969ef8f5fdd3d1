"""The pictures of docs/how_it_works.md, from one forward of a bundled model, and those of docs/pictures.md.

How to run, from the project's root:
    python studies/figures.py

Legend: B clips, F windows, M slots (meta tokens), L tokens in a window; T token frames, H x W a token grid.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.patches import Rectangle
from PIL import Image
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import sttm
from sttm.merging.merger import TokenMerger
from sttm.models import EXAMPLES, load_with_preprocess, plain_twin
from sttm.synth.videos import SynthSettings, make
from sttm.visual.paths import in_tokens
from sttm.visual.pictures import with_regions
from sttm.visual.regions import PALETTE
from sttm.visual.show import Shown, look, read_clip

MODEL, CLIP = "sttm-words", "bin.mp4"
DOCS = Path(__file__).resolve().parents[1] / "docs"
#: The window of frames that is shown.
WINDOW = 1
CELL = 240
#: The class of the synthetic clip.
RISING = "Moving [something] up"
BLUE, ORANGE = (tuple(value / 255 for value in PALETTE[n]) for n in (6, 0))


@dataclass(frozen=True)
class Run:
    """One forward of the model, and what its first merger computed in it."""

    shown: Shown
    meta_M: np.ndarray
    """Of the window, the tokens that are meta tokens."""
    cosine_ML: np.ndarray
    """Of the window, the cosine of each meta token with each token."""
    motion_MK: np.ndarray
    """Of the window, the inputs of the motion map."""

    @property
    def times(self) -> range:
        """Return the token frames of the window."""
        merger = self.shown.plan.mergers[0]
        length = merger.frames_before // merger.frames
        return range(WINDOW * length, (WINDOW + 1) * length)

    def picture(self, t: int) -> Image.Image:
        drawing = self.shown.drawing
        return drawing.pictures[t * drawing.tubelet].resize((CELL, CELL), Image.Resampling.LANCZOS)


def run() -> Run:
    """Classify the clip, and keep what hooks on the first merger see."""
    model, preprocess = load_with_preprocess(MODEL)
    merger: Any = next(module for module in model.modules() if isinstance(module, TokenMerger))
    seen: dict[str, Any] = {}
    hooks = [
        merger.selector.register_forward_hook(lambda _, args, out: seen.update(selected=out)),
        merger.motion.map.register_forward_pre_hook(lambda _, args: seen.update(motion=args[0])),
    ]
    shown = look(read_clip(EXAMPLES / CLIP, preprocess), model, preprocess, plain_twin(model, MODEL))
    for hook in hooks:
        hook.remove()
    meta_BFM, cosine_BFML = seen["selected"]
    parts = (meta_BFM, cosine_BFML, seen["motion"].detach())
    return Run(shown, *(part[0, WINDOW].numpy() for part in parts))


def cell(axis: Any, title: str, image: Any = None) -> None:
    """Prepare one panel: a picture without ticks, in units of tokens."""
    axis.set_title(title, fontsize=11)
    axis.set(xticks=[], yticks=[])
    if image is not None:
        axis.imshow(np.asarray(image), extent=(0, 6, 6, 0))


def meta_tokens(made: Run) -> None:
    """Draw steps 1 and 2: the meta tokens of a window, and how similar its tokens are to one of them."""
    grid = made.shown.drawing.grid
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
    # The meta token whose slot is largest, to have something to see.
    largest = np.bincount(made.cosine_ML.argmax(0), minlength=len(made.meta_M)).argmax()
    query = int(made.meta_M[largest])
    for row, t in enumerate(made.times):
        cell(axes[row, 0], f"token frame {t + 1}: {grid.tokens} tokens", made.picture(t))
        for line in range(1, grid.width):
            axes[row, 0].axvline(line, color="white", linewidth=0.6)
            axes[row, 0].axhline(line, color="white", linewidth=0.6)
        here = [int(meta) for meta in made.meta_M if meta // grid.tokens == row]
        cell(axes[row, 1], f"1. its {len(here)} meta tokens (bright)", made.picture(t))
        for token in range(grid.tokens):
            y, x = divmod(token, grid.width)
            chosen = row * grid.tokens + token in here
            box = dict(facecolor="none", edgecolor=ORANGE, linewidth=2) if chosen else dict(color="black", alpha=0.72)
            axes[row, 1].add_patch(Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, **box))
        cosine_HW = made.cosine_ML[largest].reshape(-1, grid.height, grid.width)[row]
        cell(axes[row, 2], "2. similarity to one of them (box)")
        shades = axes[row, 2].imshow(cosine_HW, cmap="cividis", vmin=-1, vmax=1, extent=(0, grid.width, grid.height, 0))
        for (y, x), value in np.ndenumerate(cosine_HW):
            ink = "black" if value > 0.2 else "white"
            axes[row, 2].text(x + 0.5, y + 0.5, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
        if query // grid.tokens == row:
            y, x = divmod(query % grid.tokens, grid.width)
            axes[row, 2].add_patch(
                Rectangle((x + 0.08, y + 0.08), 0.84, 0.84, fill=False, edgecolor="black", linewidth=3)
            )
    figure.colorbar(shades, ax=axes[:, 2], shrink=0.6, label="cosine")
    save(figure, "how_meta")


def fusion(made: Run) -> None:
    """Draw steps 3 and 4: which tokens become one, and what the frames are when each slot is its average."""
    grid, first = made.shown.drawing.grid, made.shown.drawing.stages[0]
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
    small = [np.asarray(made.picture(t).resize((grid.width, grid.height), Image.Resampling.BOX), float) / 255
             for t in made.times]  # fmt: skip
    slot_THW = first.slot_THW[list(made.times)]
    colour_THWC = np.stack(small)
    fused_THWC = np.zeros_like(colour_THWC)
    for slot in np.unique(slot_THW):
        fused_THWC[slot_THW == slot] = colour_THWC[slot_THW == slot].mean(0)
    slots = len(np.unique(slot_THW))
    for row, t in enumerate(made.times):
        cell(axes[row, 0], f"token frame {t + 1}: {grid.tokens} tokens", None)
        axes[row, 0].imshow(small[row], extent=(0, 6, 6, 0))
        cell(axes[row, 1], "3. lines between the slots", with_regions(made.picture(t), first, t))
        cell(axes[row, 2], f"4. both frames share {slots} slots", None)
        axes[row, 2].imshow(fused_THWC[row], extent=(0, 6, 6, 0))
    save(figure, "how_fusion")


def motion(made: Run) -> None:
    """Draw step 5: the path of the slot that moves most, and the numbers that the motion map gets of it."""
    drawing = made.shown.drawing
    moving = int(np.abs(made.motion_MK[:, 2:-1]).sum(1).argmax())
    number, first = WINDOW * len(made.meta_M) + moving, drawing.maps[0]
    assert first.trajectory is not None
    path_1T2 = (first.trajectory[0, number] + first.position[0, number, 1:]).numpy()[None].astype(float)
    (path_T2,) = in_tokens(path_1T2, drawing.grid)
    picked = range(0, drawing.grid.frames, 2)
    figure, axes = pyplot.subplots(1, len(picked) + 1, figsize=(12, 2.9), width_ratios=[1] * len(picked) + [1.7],
                                   layout="constrained")  # fmt: skip
    for axis, t in zip(axes, picked, strict=False):
        cell(axis, f"token frame {t + 1}", made.picture(t).convert("L").convert("RGB"))
        axis.plot(path_T2[: t + 1, 1], path_T2[: t + 1, 0], color="white", linewidth=5)
        axis.plot(path_T2[: t + 1, 1], path_T2[: t + 1, 0], color=BLUE, linewidth=2.5)
        axis.plot(path_T2[t, 1], path_T2[t, 0], "o", color=ORANGE, markeredgecolor="black", markersize=10)
        axis.set(xlim=(0, 6), ylim=(6, 0))
    values_K = made.motion_MK[moving]
    steps_T2 = values_K[2:-1].reshape(-1, 2)
    names = range(1, len(steps_T2) + 1)
    axes[-1].bar([n - 0.2 for n in names], steps_T2[:, 0], 0.4, color=BLUE, label="down (+), up (-)")
    axes[-1].bar([n + 0.2 for n in names], steps_T2[:, 1], 0.4, color=ORANGE, hatch="//", label="right (+), left (-)")
    axes[-1].set_xticks(names)
    axes[-1].axhline(0, color="black", linewidth=0.8)
    axes[-1].set_title("steps of one slot, as the map gets them", fontsize=11)
    axes[-1].set_xlabel("from token frame n to the next")
    axes[-1].legend(fontsize=8, frameon=False)
    save(figure, "how_motion")


def tokens(made: Run) -> None:
    """Draw how many tokens each block has, with and without merging."""
    plan, grid = made.shown.plan, made.shown.drawing.grid
    blocks, left = 4, grid.frames * grid.tokens
    counts = []
    for block in range(blocks):
        for merger in plan.mergers:
            if merger.layer == block:
                left = merger.frames * merger.tokens
        counts.append(left)
    figure, axis = pyplot.subplots(figsize=(8, 2.9), layout="constrained")
    names = np.arange(blocks)
    bars = ((-0.2, [grid.frames * grid.tokens] * blocks, "#9a9a9a", "plain"), (0.2, counts, BLUE, "merged"))
    for offset, values, colour, label in bars:
        drawn = axis.bar(names + offset, values, 0.4, color=colour, label=label)
        axis.bar_label(drawn, fontsize=10)
    axis.set(ylabel="tokens in the block", ylim=(0, 350))
    axis.set_xticks(names, [f"block {block}" for block in names])
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{MODEL}: {plan.compute:.0%} of the plain multiply-adds, mergers included", fontsize=11)
    axis.legend(frameon=False, loc="upper right", ncols=2)
    save(figure, "how_tokens")


def merges() -> None:
    """Draw what `sttm show` does: an example of the package, a synthetic clip, and a large model before training."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "made", SynthSettings(clips=18), workers=1)
        labels = json.loads((folder / "made" / "train.json").read_text(encoding="utf-8"))
        up = next(entry["id"] for entry in labels if entry["template"] == RISING)
        VideoMAEForVideoClassification(VideoMAEConfig(num_labels=10)).save_pretrained(folder / "unfitted")
        shown = {"merged": (EXAMPLES / CLIP, MODEL), "unfitted": (EXAMPLES / CLIP, folder / "unfitted")}
        shown["paths"] = (folder / "made" / "videos" / f"{up}.mp4", "sttm-motion")
        for name, (clip, model) in shown.items():
            sttm.show(clip, DOCS / f"{name}.png", model=model)
            lessen(DOCS / f"{name}.png", 128)


def save(figure: Any, name: str) -> None:
    """Save a picture with a background of its own, readable on a light and on a dark page."""
    path = DOCS / f"{name}.png"
    figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)
    lessen(path, 192)


def lessen(path: Path, colours: int) -> None:
    """Save a picture again in so many colours."""
    Image.open(path).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    made = run()
    for draw in (meta_tokens, fusion, motion, tokens):
        draw(made)
    merges()
