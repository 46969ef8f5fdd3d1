"""Shows that made videos are of the kinds they claim: what a model learns of each from frames in order, from the same
frames shuffled, and from one frame alone.

*motion* must be learnt in order only, *scene* from one frame too. The model is the bundled plain one, which has learnt
to see everything in these videos; it is trained further on what it is allowed to see, with a new head, the same steps
for all. Frames are shuffled, or the one frame is chosen, anew for every clip and step. Top-1 is over clips that no
training saw.

How to run, from the project's root (finished runs are not run again):
    python studies/kinds.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.devices import machine
from sttm.evaluation.metrics import Accuracy
from sttm.models import resolve
from sttm.synth.videos import CLASSES, render

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "kinds.json"
START, BATCH, RATE, SEED = "sttm-motion-plain", 32, 1e-3, 7
VIEWS = ("ordered", "shuffled", "one frame")


def pictures(kind: str, clips: int, cache: Path, preprocess: Preprocess) -> tuple[np.ndarray, Tensor]:
    """Pixels [N, T, 3, H, W] in half precision and classes [N] of clips drawn straight into memory."""
    path = cache / f"{kind}-{clips}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        drawn = [
            preprocess(torch.from_numpy(render(kind, index, SEED)[0]).permute(0, 3, 1, 2))[0].half().numpy()
            for index in range(clips)
        ]
        np.save(path, np.stack(drawn))
    return np.load(path, mmap_mode="r"), torch.arange(clips) % len(CLASSES[kind])


def seen(clips: np.ndarray, view: str, rng: np.random.Generator) -> Tensor:
    """The clips as one view shows them: [B, T, 3, H, W]."""
    shown = []
    for clip in clips:
        if view == "shuffled":
            clip = clip[rng.permutation(len(clip))]
        elif view == "one frame":
            clip = np.repeat(clip[rng.integers(len(clip))][None], len(clip), axis=0)
        shown.append(clip)
    return torch.from_numpy(np.stack(shown)).float()


def run(kind: str, view: str, clips: int, steps: int, cache: Path) -> dict[str, object]:
    """Trains one model on one view and counts what it gets right of clips it has not seen."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pixels, classes = pictures(kind, clips, cache, Preprocess.from_folder(resolve(START)))
    known = clips * 4 // 5
    model = sttm.load(START).train()
    model.set_attn_implementation("eager")  # at this size the faster one on a CPU
    model.classifier = nn.Linear(model.config.hidden_size, len(CLASSES[kind]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    started = time.perf_counter()
    for step in range(steps):
        indices = np.sort(rng.choice(known, BATCH, replace=False))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(seen(pixels[indices], view, rng)).logits
        loss = cross_entropy(logits.float(), classes[indices])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{kind} {view} {step}/{steps} loss {loss.item():.3f}", flush=True)
    model.eval()
    counted = Accuracy()
    with torch.no_grad():
        for indices in np.array_split(np.arange(known, clips), (clips - known) // 50):
            counted += Accuracy.of(model(seen(pixels[indices], view, rng)).logits, classes[indices])
    return dict(
        kind=kind, view=view, top1=counted.share, interval=counted.interval, chance=1 / len(CLASSES[kind]),
        clips=counted.total, trained_on=known, steps=steps, seed=SEED, start=START,
        seconds=round(time.perf_counter() - started), machine=machine(torch.device("cpu")),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache" / "kinds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for kind in ("motion", "scene"):
        for view in VIEWS:
            if any((row["kind"], row["view"], row["steps"]) == (kind, view, options.steps) for row in rows):
                continue
            rows.append(run(kind, view, options.clips, options.steps, options.cache))
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
