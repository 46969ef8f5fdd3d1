"""Take the position's part out of what tokens are compared by: what that does to accuracy, off the shelf.

A VideoMAE adds a position embedding to every token, so neighbours are alike by where they lie and not only by how they
look. Here the first merger compares tokens less that embedding; the tokens that it averages keep it. Two trained models
of the package, plain ones, on clips of the validation splits.

How to run, from the project's root, with the data in STTM_DATA or ../shared/data (three minutes on one core):
    python studies/positions.py
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from harness.data import clip_set
from harness.runs import RESULTS, commit
from harness.synthetic import synthetic_set
from harness.tables import markdown, show_in_docs
from harness.training import Clips, predict
from matplotlib import pyplot
from torch import Tensor

import sttm
from sttm.devices import machine
from sttm.evaluation.metrics import Accuracy
from sttm.merging import METHODS
from sttm.merging.merger import TokenMerger
from sttm.models import EXAMPLES, load_with_preprocess
from sttm.visual.pictures import with_regions
from sttm.visual.show import look, read_clip

FOLDER = RESULTS / "positions"
COMPUTES = (0.62, 0.5, 0.35)
FRAMES, CLIP = 16, "bin.mp4"
#: Synthetic clips; of the words, the validation split has 410.
COUNT = 600


class WithoutPosition(TokenMerger):
    """Compare the tokens of a clip less their position embeddings, where nothing has merged them before."""

    name = "sttm, without position"
    place_FLC: Tensor | None = None

    def features(self, x_BFLC: Tensor) -> Tensor:
        return super().features(x_BFLC if self.place_FLC is None else x_BFLC - self.place_FLC)


METHODS[WithoutPosition.name] = WithoutPosition


def merged(name: str, compute: float, method: str) -> tuple[Any, Any]:
    """Return a plain model of the package, merged off the shelf, and its preprocessing."""
    model, preprocess = load_with_preprocess(name)
    sttm.apply(model, compute, method)
    first: Any = next(module for module in model.modules() if isinstance(module, TokenMerger))
    if isinstance(first, WithoutPosition):
        place_1NC = model.videomae.embeddings.position_embeddings.detach()
        first.place_FLC = place_1NC.reshape(first.frames, -1, first.dim)
    return model.eval(), preprocess


def rows_of(name: str, clips: Clips) -> list[dict[str, Any]]:
    """Return a row for each compute and method of one model."""
    rows = []
    for compute in COMPUTES:
        for method in (TokenMerger.name, WithoutPosition.name):
            model, _ = merged(name, compute, method)
            counted = Accuracy(correct=int((torch.from_numpy(predict(model, clips, FRAMES)) == clips.classes).sum()),
                               total=len(clips))  # fmt: skip
            rows.append({"model": name, "compute": compute, "method": method, "top1": round(counted.share, 4),
                         "interval": counted.interval, "clips": counted.total})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def table_of(rows: list[dict[str, Any]], where: str) -> str:
    """Return the table: a line for each model and compute."""
    shown: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        low, high = row["interval"]
        cell = f"{100 * row['top1']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        shown.setdefault((row["model"], row["compute"]), []).append(cell)
    lines = [(f"`{model}`", f"{compute:g}", *cells) for (model, compute), cells in shown.items()]
    heads = ("model", "compute", "compared as they are", "less their position embeddings")
    told = f"`python studies/positions.py`, {where}. Top-1 in %, in brackets the 95 % interval."
    return f"{told}\n\n{markdown(heads, lines)}\n"


def picture() -> None:
    """Draw the slots of one clip, with and without the position's part."""
    figure, axes = pyplot.subplots(2, 4, figsize=(10, 5.4), layout="constrained")
    for row, method in enumerate((TokenMerger.name, WithoutPosition.name)):
        model, preprocess = merged("sttm-words-plain", 0.5, method)
        twin = sttm.load("sttm-words-plain"), "plain"
        drawing = look(read_clip(EXAMPLES / CLIP, preprocess), model, preprocess, twin).drawing
        for axis, t in zip(axes[row], range(0, drawing.grid.frames, 2), strict=True):
            small = drawing.pictures[t * drawing.tubelet].resize((240, 240))
            axis.imshow(with_regions(small, drawing.stages[0], t))
            axis.set(xticks=[], yticks=[], title=f"token frame {t + 1}")
        axes[row, 0].set_ylabel("as they are" if row == 0 else "less position")
    figure.savefig(FOLDER / "slots.png", dpi=90, facecolor="white")
    pyplot.close(figure)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = rows_of("sttm-words-plain", clip_set("grid_words", "validation", 48))
    rows += rows_of("sttm-motion-plain", synthetic_set("motion", "validation", 64, COUNT, "positions"))
    measured = {"commit": commit(), "machine": machine(torch.device("cpu")), "rows": rows}
    (FOLDER / "figures.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "table.md").write_text(table_of(rows, measured["machine"]), encoding="utf-8")
    show_in_docs(FOLDER / "table.md")
    picture()


if __name__ == "__main__":
    main()
