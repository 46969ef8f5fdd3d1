"""The demo: synthetic videos, classified with and without merging, and a page that shows the results; all offline.

Legend: N videos, T frames, C colours, H height, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from sttm import models
from sttm.backbones import backbone_of
from sttm.errors import SttmError
from sttm.patching import api
from sttm.visual.comparison import TRAINING_SEED, Comparison
from sttm.visual.page import Example, Prediction, report
from sttm.visual.pictures import merge_picture, restore

#: Clips with pictures on the page.
PICTURES = 6


# Over 40 lines: most are the options and what they mean.
def run(
    folder: str | Path,
    *,
    clips: int = 360,
    seed: int = 1,
    plain: str = "sttm-motion-plain",
    merged: str = models.DEFAULT,
    batch: int = 8,
    workers: int | None = None,
    advance: Callable[[int, int], None] = lambda videos, total: None,
) -> dict[str, Any]:
    """Make `clips` videos, classify them with two models, and write `report.html` with pictures to `folder`.

    Every video is an mp4 file that is read as any other. Each batch goes through both models, in turn, so that
    accuracy and speed are measured on the same videos; the time to read them is reported apart.

    Args:
        folder: videos are written to a folder inside it, and used again by a second run.
        seed: of the videos; not the one that the bundled models were trained on.
        plain, merged: names of two models with the same classes and the same preprocessing.
        batch: videos that go through a model at once.
        workers: processes that make videos; one for each core by default.
        advance: called with the number of videos just made or classified, and with the sum of both kinds in the end.

    Returns:
        {"rows": one record for each model, "speedup": its quantiles over the batches, "ideal_speedup", "report",
        "machine", "only_right": videos that only one of the two has right, ...}; `table` prints it.

    Raises:
        SttmError: for the seed of the training videos, fewer videos than classes, models that cannot be compared,
            or a folder that cannot be written.
    """
    started = time.perf_counter()
    if seed == TRAINING_SEED:
        raise SttmError(f"seed={seed} made the videos that the bundled models learned from; choose another, such as 1")
    if batch < 1:
        raise SttmError(f"batch={batch} is no number of clips; give one or more")
    comparison = Comparison.load(plain, merged)
    made = comparison.make_videos(Path(folder), clips, seed, workers, advance)
    comparison.classify_in_turn(batch, lambda videos: advance(videos, made + clips))
    result = comparison.result(seed)
    path = Path(folder) / "report.html"
    path.write_text(_page(result, comparison, str(Path(folder)), batch), encoding="utf-8")
    return result | {"report": str(path), "seconds": round(time.perf_counter() - started, 1)}


def table(result: dict[str, Any]) -> Table:
    """Return what `run` returned as a table for the terminal."""
    title = f"{result['clips']} synthetic videos, {result['machine']}"
    drawn = Table(title=title, title_justify="left", caption=_note(result), caption_justify="left")
    header, *rows = _cells(result)
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _page(result: dict[str, Any], comparison: Comparison, folder: str, batch: int) -> str:
    """Return the page: the results, what was run, and clips with pictures."""
    header, *cells = _cells(result)
    plain, merged = result["rows"]
    percent = [f"{100 * row['top1']:.1f} %" for row in (plain, merged)]
    times, timed = f"{result['speedup']['p50']:.2f} times", result["batches_timed"]
    clips, classes = result["clips"], len(comparison.labels)
    where = "" if folder == "demo" else f" {folder}"
    return report(
        title=f"Merging tokens: {times} as fast, {percent[1]} right instead of {percent[0]}",
        summary=f"The merged model spends {100 * merged['compute']:.0f} % of the multiply-adds. {_note(result)}",
        header=header,
        rows=cells,
        facts=[
            ("Command", f"sttm demo{where} --clips {clips} --seed {result['seed']}"),
            ("Videos", f"{clips} synthetic mp4 files of {classes} motions; training used seed {TRAINING_SEED}"),
            ("Timing", f"{timed} batches of {batch}, plain and merged in turn; fp32, eager; without reading"),
            ("Speed-up", "median over the batches of plain over merged seconds; from the p10 to the p90"),
            ("Top-1", "share of the clips whose best class is right, with Wilson's 95 % interval"),
            ("Plan", str(api.plan_of(comparison.networks[1])).splitlines()[0]),
            ("Machine", result["machine"]),
        ],
        examples=list(_examples(comparison)),
    )


def _cells(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table as text, header first."""
    cells = [["Model", "Top-1 (95 % interval)", "GMACs a clip", "Compute"]]
    cells[0] += ["Clips/s (p10 to p90)", "Speed-up (p10 to p90)"]
    for row, speedup in zip(result["rows"], ("1", _spread(result["speedup"])), strict=True):
        low, high = (100 * row["top1_interval"][end] for end in ("low", "high"))
        top1 = f"{100 * row['top1']:.1f} % ({low:.1f} to {high:.1f})"
        cost = [f"{row['gmacs']:.3g}", f"{row['compute']:.3f}"]
        cells.append([row["model"], top1, *cost, _spread(row["clips_per_s"]), speedup])
    return cells


def _spread(values: dict[str, float]) -> str:
    """Return the median and the p10 and p90 with three digits, never as a power of ten."""
    digits = max(0, 2 - math.floor(math.log10(values["p50"])))
    low, middle, high = (f"{values[name]:.{digits}f}" for name in ("p10", "p50", "p90"))
    return f"{middle} ({low} to {high})"


def _note(result: dict[str, Any]) -> str:
    """Return the sentences under the table."""
    only = result["only_right"]
    return (
        f"Multiply-adds alone would give a speed-up of {result['ideal_speedup']:.2f}. "
        f"Of {result['clips']} clips, {only['merged']} are right only with merging and {only['plain']} only "
        f"without. Reading a clip takes {result['reading_ms']:.0f} ms more, for both."
    )


def _examples(comparison: Comparison) -> Iterator[Example]:
    """Yield some clips of different classes, and one of each way in which the models are wrong."""
    best_MN = [torch.stack(scores).argmax(-1) for scores in comparison.scores]
    model, preprocess, truth_N = comparison.networks[1], comparison.preprocess, comparison.truth_N
    grid = backbone_of(model).grid(model, api.plan_of(model).clip_shape)
    for number in _picked([best_N == truth_N for best_N in best_MN], len(comparison.labels)):
        (sample,) = comparison.read(comparison.files[number : number + 1])
        assert sample.pixels_VTCHW is not None
        with torch.no_grad(), api.trace(model) as maps:
            model(sample.pixels_VTCHW)
        frames_TCHW = restore(sample.pixels_VTCHW[0], preprocess)
        predictions = []
        for name, best_N, scores in zip(comparison.names, best_MN, comparison.scores, strict=True):
            best = int(best_N[number])
            label, score = comparison.labels[best], float(scores[number][best])
            predictions.append(Prediction(name, label, score, best == int(truth_N[number])))
        label = comparison.labels[int(truth_N[number])]
        yield Example(label, merge_picture(frames_TCHW, maps, grid), predictions)


def _picked(right_MN: Sequence[Tensor], classes: int) -> list[int]:
    """Return the numbers of the clips to show: some of different classes, then one of each kind of error, if any."""
    plain_N, merged_N = right_MN
    errors = [merged_N & ~plain_N, plain_N & ~merged_N, ~plain_N & ~merged_N]
    found = [int(error_N.nonzero()[0]) for error_N in errors if error_N.any()]
    # The classes alternate in the list: its first videos are one of each class.
    spread = [number for number in range(0, classes, max(1, classes // PICTURES)) if number not in found]
    return [*spread[: PICTURES - len(found)], *found]
