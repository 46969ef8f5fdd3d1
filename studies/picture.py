"""Draw the picture of the README: a synthetic clip, what merges in the bundled model, and the paths of its objects.

How to run, from the project's root:
    python studies/picture.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sttm
from sttm.backbones import backbone_of
from sttm.data.transforms.preprocess import Preprocess
from sttm.models import DEFAULT, resolve
from sttm.patching.api import plan_of
from sttm.synth.clips import render
from sttm.visual.pictures import merge_picture

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=int, default=0, help="number of the synthetic clip, of seed 1")
    options = parser.parse_args()
    model, preprocess = sttm.load(DEFAULT), Preprocess.from_folder(resolve(DEFAULT))
    drawn, label, _ = render("motion", options.clip, seed=1)
    frames_TCHW = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    with torch.no_grad(), sttm.trace(model) as maps:
        best = model(preprocess(frames_TCHW)).logits.argmax()
    print(f"{label}: classified as {model.config.id2label[int(best)]}")
    (ROOT / "docs").mkdir(exist_ok=True)
    grid = backbone_of(model).grid(model, plan_of(model).clip_shape)
    merge_picture(frames_TCHW, maps, grid).save(ROOT / "docs" / "merged.png")


if __name__ == "__main__":
    main()
