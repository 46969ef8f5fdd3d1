"""Shows that made videos are of the kinds they claim: what a small model learns of each from frames in order, from the
same frames shuffled, and from one frame alone.

*motion* must be learnt in order only; *scene* must be learnt from one frame too. Frames are shuffled, or the one frame
chosen, anew for every clip and step. Accuracy is that on the validation split of clips that training never saw.

How to run, from the project's root (about an hour on one core; finished runs are not run again):
    python studies/kinds.py
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from sttm.data.synth import CLASSES, render

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "kinds.json"
SIDE, FRAMES, BATCH, RATE = 56, 16, 32, 1e-3
VIEWS = ("ordered", "shuffled", "one frame")


def pictures(kind: str, clips: int, cache: Path) -> tuple[np.ndarray, Tensor]:
    """Frames [N, T, 3, 56, 56] in bytes and classes [N] of clips drawn straight into memory."""
    path = cache / f"{kind}-{clips}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        frames = np.lib.format.open_memmap(part, "w+", np.uint8, (clips, FRAMES, 3, SIDE, SIDE))
        for index in range(clips):
            drawn = torch.from_numpy(render(kind, index, seed=7)[0]).permute(0, 3, 1, 2)
            frames[index] = interpolate(drawn, (SIDE, SIDE), mode="bilinear", antialias=True).numpy()
        frames.flush()
        part.replace(path)
    return np.load(path, mmap_mode="r"), torch.arange(clips) % len(CLASSES[kind])


def seen(frames: np.ndarray, view: str, rng: np.random.Generator) -> Tensor:
    """The clips as one view shows them, normalised: [B, T, 3, H, W]."""
    clips = []
    for clip in frames:
        if view == "shuffled":
            clip = clip[rng.permutation(FRAMES)]
        elif view == "one frame":
            clip = np.repeat(clip[rng.integers(FRAMES)][None], FRAMES, axis=0)
        clips.append(clip)
    return torch.from_numpy(np.stack(clips)).float() / 127.5 - 1


def run(kind: str, view: str, clips: int, steps: int, seed: int, cache: Path) -> dict[str, object]:
    """Trains one small model and counts what it gets right of clips it has not seen."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    frames, classes = pictures(kind, clips, cache)
    known = clips * 9 // 10
    config = VideoMAEConfig(
        image_size=SIDE, patch_size=8, num_frames=FRAMES, hidden_size=64, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=256, num_labels=len(CLASSES[kind]),
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    started = time.perf_counter()
    for step in range(steps):
        indices = np.sort(rng.choice(known, BATCH, replace=False))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(seen(frames[indices], view, rng)).logits
        loss = cross_entropy(logits.float(), classes[indices])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"{kind} {view} {step}/{steps} loss {loss.item():.3f}", flush=True)
    model.eval()
    right = 0
    with torch.no_grad():
        for indices in np.array_split(np.arange(known, clips), (clips - known) // 50):
            found = model(seen(frames[indices], view, rng)).logits.argmax(-1)
            right += int((found == classes[indices]).sum())
    return dict(
        kind=kind, view=view, top1=right / (clips - known), chance=1 / len(CLASSES[kind]), clips=clips - known,
        trained_on=known, steps=steps, seed=seed, seconds=round(time.perf_counter() - started),
        machine=platform.processor() or platform.machine(), torch=torch.__version__,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache" / "kinds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for kind in ("motion", "scene"):
        for view in VIEWS:
            if any((row["kind"], row["view"], row["steps"]) == (kind, view, options.steps) for row in rows):
                continue
            rows.append(run(kind, view, options.clips, options.steps, 0, options.cache))
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
