"""How often an engine names the class that eager names in fp32, on the test clips of the bundled models.

How to run, from the project's root, with the extra `export`:
    python studies/engines.py --words FOLDER --clips 1000

FOLDER holds clips of words, such as the test clips of the study `words`; without it only synthetic motions are asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness.data import ROOT
from harness.provenance import commit
from harness.training import device
from torch import Tensor, nn

from sttm import models
from sttm.data.loader import read_ahead
from sttm.data.video.video import Video
from sttm.devices import machine
from sttm.engines.engine import ENGINES, make_engine
from sttm.evaluation.inference import classify
from sttm.synth.videos import SynthSettings, make

SEED = 9  # not one of those that the bundled models were trained on
MOTION, WORDS = "sttm-motion", "sttm-words"


def answers(model: nn.Module, name: str, videos: Iterable[Path]) -> Tensor:
    """Return the class that a model names for each video that can be read."""
    _, preprocess = models.load_with_preprocess(name)
    samples = read_ahead([Video(str(path)) for path in videos], preprocess, (1, 1), 1)
    found = [result.scores_K for result in classify(model, samples)]
    return torch.stack([scores_K.argmax() for scores_K in found if scores_K is not None])


def agreements(name: str, videos: list[Path]) -> list[dict[str, object]]:
    """Return a row for each engine and dtype."""
    model = models.load(name)
    wanted = answers(model, name, videos)
    rows: list[dict[str, object]] = []
    for engine, dtypes in ENGINES.items():
        for dtype in dtypes:
            if (engine, dtype) != ("eager", "fp32"):
                same = answers(make_engine(engine, model, dtype), name, videos) == wanted
                row = {"model": name, "engine": engine, "dtype": dtype, "clips": len(same), "same": int(same.sum())}
                rows.append(row | {"agreement": round(float(same.double().mean()), 4)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, help="folder of clips of words")
    parser.add_argument("--clips", type=int, default=1000, help="clips of each model")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        made = make(
            Path(folder) / "motion", SynthSettings("motion", given.clips, seed=SEED, train=0, validation=0, test=1)
        )
        rows = agreements(MOTION, sorted((made / "videos").glob("*.mp4")))
    if given.words is not None:
        rows += agreements(WORDS, sorted(given.words.rglob("*.mp4"))[: given.clips])
    result = {"commit": commit(), "machine": machine(device()), "rows": rows}
    (ROOT / "results" / "engines.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
