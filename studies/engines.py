"""How often an engine names the class that eager names in fp32, on test clips of the bundled merged models.

How to run, from the project's root, with the extra `export`, and the clips of words in STTM_DATA or ../shared/data:
    python studies/engines.py run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness.data import data_settings
from harness.provenance import provenance, publish, sentence
from harness.runs import RESULTS
from harness.tables import markdown
from torch import Tensor, nn

from sttm import models
from sttm.data.datasets.video_set import read_split
from sttm.data.loader import read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.engines.engine import ENGINES, make_engine
from sttm.evaluation.inference import classify
from sttm.synth.videos import SynthSettings, make

SEED = 9  # not one of those that the bundled models were trained on
MOTION, WORDS = "sttm-motion", "sttm-words"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run"])
    parser.add_argument("--clips", type=int, default=1000, help="clips of each model")
    parser.add_argument("--models", default=f"{MOTION},{WORDS}", help="only these, separated by commas")
    parser.add_argument("--engines", default=",".join(ENGINES), help="only these, separated by commas")
    given = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for name in given.models.split(","):
            rows += agreements(name, clips_of(name, given.clips, Path(folder)), given.engines.split(","))
    found = provenance("python studies/engines.py " + " ".join(sys.argv[1:])) | {"rows": rows}
    publish(RESULTS / "engines" / "agreement.json", found, table_of)


def clips_of(name: str, count: int, folder: Path) -> list[Video]:
    """Return clips that a bundled model was not trained on: test clips of words, or new synthetic ones."""
    if name == WORDS:
        return list(read_split(data_settings("grid_words"), "test").videos[:count])
    made = make(folder / "motion", SynthSettings("motion", count, seed=SEED, train=0, validation=0, test=1))
    return [Video(str(path)) for path in sorted((made / "videos").glob("*.mp4"))]


def agreements(name: str, videos: Sequence[Video], engines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each engine and dtype."""
    model, preprocess = models.load_with_preprocess(name)
    wanted = answers(model, preprocess, videos)
    for engine in engines:
        for dtype in ENGINES[engine]:
            if (engine, dtype) != ("eager", "fp32"):
                same = answers(make_engine(engine, model, dtype), preprocess, videos) == wanted
                row = {"model": name, "engine": engine, "dtype": dtype, "clips": len(same), "same": int(same.sum())}
                print(row, flush=True)
                yield row


def answers(model: nn.Module, preprocess: Preprocess, videos: Sequence[Video]) -> Tensor:
    """Return the class that a model names for each video that can be read."""
    found = [result.scores_K for result in classify(model, read_ahead(videos, preprocess, (1, 1), 1))]
    return torch.stack([scores_K.argmax() for scores_K in found if scores_K is not None])


def table_of(found: dict[str, Any]) -> str:
    """Return the table: a row for each engine and dtype, a column for each model."""
    names = list(dict.fromkeys(row["model"] for row in found["rows"]))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in found["rows"]:
        share = f"{row['same'] / row['clips']:.1%} of {row['clips']:,}"
        cells.setdefault((row["engine"], row["dtype"]), {})[row["model"]] = share
    lines = [(f"{engine}, {dtype}", *(of[name] for name in names)) for (engine, dtype), of in cells.items()]
    return f"{markdown(('engine, dtype', *names), lines)}\n\n{sentence(found)}\n"


if __name__ == "__main__":
    main()
