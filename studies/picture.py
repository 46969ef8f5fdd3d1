"""Draw the picture of the README: a clip, and which of its tokens merge in the plain bundled model, off the shelf.

How to run, from the project's root, on a clip of the GRID corpus (Cooke et al., 2006; CC BY 4.0):
    python studies/picture.py bbaf2n_command.mp4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sttm
from sttm.backbones import backbone_of
from sttm.data.video.read import read
from sttm.models import load_with_preprocess
from sttm.visual.pictures import merge_picture, restore

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="a video file")
    parser.add_argument("--compute", type=float, default=0.62, help="share of the multiply-adds")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "merged.png", help="the picture")
    options = parser.parse_args()
    model, preprocess = load_with_preprocess("sttm-motion-plain")
    plan = sttm.apply(model, options.compute)
    (clip,) = read(options.clip, preprocess.sampling)
    pixels_BTCHW = preprocess(clip.frames_TCHW)
    with torch.no_grad(), sttm.trace(model) as maps:
        model(pixels_BTCHW)
    grid = backbone_of(model).grid(model, plan.clip_shape)
    merge_picture(restore(pixels_BTCHW[0], preprocess), maps, grid).save(options.out)


if __name__ == "__main__":
    main()
