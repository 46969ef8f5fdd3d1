"""How far the logits of one clip lie apart where something else differs: docs/determinism.md has the table.

How to run, from the project's root, with the extra `export`:
    python studies/determinism.py run

Each bundled model classifies the bundled example videos. A row has the greatest distance of a logit over all clips, as
it is and over the greatest logit, and how many of the clips keep their class.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness.runs import RESULTS, commit
from harness.tables import markdown, show_in_docs
from torch import Tensor, nn

import sttm
from sttm import models
from sttm.data.loader import read_ahead
from sttm.data.video.video import VIDEO_SUFFIXES, Video
from sttm.devices import machine
from sttm.engines.engine import ENGINES, available, make_engine
from sttm.evaluation.inference import forward

EXAMPLES = Path(sttm.__file__).parent / "bundled" / "examples"
MODELS = ("sttm-motion-plain", "sttm-motion", "sttm-words-plain", "sttm-words")
FOLDER = RESULTS / "determinism"
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run"])
    parser.add_argument("--engines", default=",".join(ENGINES), help="those to ask, of those that can run here")
    engines = parser.parse_args().engines.split(",")
    rows = [row for name in MODELS for row in distances(name, engines)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    told = {"commit": commit(), "machine": machine(CPU), "rows": rows}
    (FOLDER / "rows.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "table.md").write_text(table(told), encoding="utf-8")
    show_in_docs(FOLDER / "table.md")


def distances(name: str, engines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each thing that may differ."""
    model, preprocess = models.load_with_preprocess(name)
    files = sorted(path for path in EXAMPLES.iterdir() if path.suffix in VIDEO_SUFFIXES)
    samples = read_ahead([Video(str(path)) for path in files], preprocess, (1, 1), 1)
    clips = torch.cat([s.pixels_VTCHW for s in samples if s.pixels_VTCHW is not None])
    wanted = forward(model, clips)
    for what, found in differing(name, model, clips, engines):
        off = (found - wanted).abs().max()
        row = {"model": name, "what": what, "clips": len(clips), "distance": float(off)}
        row |= {"of_greatest": float(off / wanted.abs().max())}
        yield row | {"same_class": int((found.argmax(-1) == wanted.argmax(-1)).sum())}
        print(row, flush=True)


def differing(name: str, model: nn.Module, clips: Tensor, engines: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the logits of the clips where something differs, with what it is."""
    yield "nothing: loaded and run again", forward(models.load(name), clips.clone())
    yield "batch: one clip at a time", torch.cat([forward(model, clip[None]) for clip in clips])
    yield "batch: the other way round", forward(model, clips.flip(0)).flip(0)
    yield "threads: two for one", with_threads(2, lambda: forward(model, clips))
    yield "eager, bf16", forward(model, clips, torch.bfloat16)
    for dtype in ("fp32", "bf16", "int8"):
        for engine in available(dtype, CPU):
            if engine != "eager" and engine in engines:
                yield f"{engine}, {dtype}", forward(make_engine(engine, model, dtype), clips)


def with_threads(count: int, run: Callable[[], Tensor]) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def table(told: dict[str, Any]) -> str:
    """Return a row for each thing that may differ: the greatest distance over the models."""
    rows = told["rows"]
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        of = [row for row in rows if row["what"] == what]
        plain = [row for row in of if row["model"].endswith("-plain")]
        merged = [row for row in of if row not in plain]
        same, clips = (sum(row[key] for row in of) for key in ("same_class", "clips"))
        lines.append([what, *(_far(group) for group in (plain, merged)), f"{same} of {clips}"])
    head = ["what differs", "plain models", "merged models", "clips that keep their class"]
    return f"`results/determinism/rows.json`, {told['machine']}, commit {told['commit']}.\n\n{markdown(head, lines)}\n"


def _far(rows: list[dict[str, Any]]) -> str:
    if not any(row["distance"] for row in rows):
        return "0"
    return f"{max(row['distance'] for row in rows):.1e} ({max(row['of_greatest'] for row in rows):.1e})"


if __name__ == "__main__":
    main()
