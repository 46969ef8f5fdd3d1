"""Check that synthetic videos are of the kinds they claim: what a model learns of each from ordered frames, from the
same frames shuffled, and from one frame alone.

*motion* must be learnable from ordered frames only, *scene* from one frame too. The model is the bundled plain one; it
is trained further on what it is allowed to see, with a new head, the same steps for all. Frames are shuffled, or the
one frame is chosen, anew for every clip and step. Top-1 is over clips that no training saw.

How to run, from the project's root (finished runs are not run again):
    python studies/kinds.py
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from harness.data import CACHE
from harness.runs import RESULTS
from harness.training import autocast, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.devices import machine
from sttm.evaluation.metrics import Accuracy
from sttm.models import resolve
from sttm.synth.clips import CLASSES, render

FIGURES = RESULTS / "kinds" / "figures.json"
START, BATCH, LR, SEED = "sttm-motion-plain", 32, 1e-3, 7
VIEWS = ("ordered", "shuffled", "one frame")


def pictures(kind: str, clips: int, preprocess: Preprocess) -> tuple[np.ndarray, Tensor]:
    """Return pixels [N, T, 3, H, W] in half precision and classes [N] of clips drawn straight into memory."""
    path = CACHE / "kinds" / f"{kind}-{clips}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = [
            preprocess(torch.from_numpy(render(kind, index, SEED)[0]).permute(0, 3, 1, 2))[0].half().numpy()
            for index in range(clips)
        ]
        np.save(path, np.stack(drawn))
    return np.load(path, mmap_mode="r"), torch.arange(clips) % len(CLASSES[kind])


def seen(clips: np.ndarray, view: str, rng: np.random.Generator) -> Tensor:
    """Return the clips as one view shows them: [B, T, 3, H, W]."""
    shown = []
    for clip in clips:
        if view == "shuffled":
            clip = clip[rng.permutation(len(clip))]
        elif view == "one frame":
            clip = np.repeat(clip[rng.integers(len(clip))][None], len(clip), axis=0)
        shown.append(clip)
    return torch.from_numpy(np.stack(shown)).float()


def run(kind: str, view: str, clips: int, steps: int) -> dict[str, object]:
    """Train one model on one view and count what it gets right of clips it has not seen."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pixels, classes = pictures(kind, clips, Preprocess.from_folder(resolve(START)))
    known = clips * 4 // 5
    model = sttm.load(START)
    model.set_attn_implementation("eager")  # at this size the faster one on a CPU
    model.classifier = nn.Linear(model.config.hidden_size, len(CLASSES[kind]))

    def loss_of_step(step: int) -> Tensor:
        indices = np.sort(rng.choice(known, BATCH, replace=False))
        with autocast():
            logits = model(seen(pixels[indices], view, rng)).logits
        return cross_entropy(logits.float(), classes[indices])

    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    seconds = train(model, loss_of_step, steps, [optimizer])
    model.eval()
    counted = Accuracy()
    with torch.no_grad():
        for indices in np.array_split(np.arange(known, clips), (clips - known) // 50):
            counted += Accuracy.of(model(seen(pixels[indices], view, rng)).logits, classes[indices])
    return dict(
        kind=kind, view=view, top1=counted.share, interval=counted.interval, chance=1 / len(CLASSES[kind]),
        clips=counted.total, trained_on=known, steps=steps, seed=SEED, start=START,
        seconds=round(seconds), machine=machine(torch.device("cpu")),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    for kind in ("motion", "scene"):
        for view in VIEWS:
            if any((row["kind"], row["view"], row["steps"]) == (kind, view, options.steps) for row in rows):
                continue
            rows.append(run(kind, view, options.clips, options.steps))
            FIGURES.parent.mkdir(parents=True, exist_ok=True)
            FIGURES.write_text(json.dumps(rows, indent=2) + "\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
