"""The demo: videos classified with and without merging, and a page that shows the results; all offline.

Most videos are synthetic and made first; six are real, and come with the package.

Legend: N videos, T frames, C colours, H height, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sttm import models
from sttm.backbones import backbone_of
from sttm.errors import SttmError
from sttm.evaluation.metrics import Accuracy, Confusion
from sttm.model_card import CARD, front_matter
from sttm.patching import api
from sttm.visual.comparison import TRAINING_SEED, Comparison
from sttm.visual.pages.charts import Point, accuracy_chart, confusion_chart
from sttm.visual.pages.page import Example, Prediction, Section, report
from sttm.visual.pictures import Drawing, merge_picture, restore

#: Synthetic clips with pictures on the page; their frames side by side, few enough for a phone, and how wide each is.
PICTURES, COLUMNS, CELL = 6, 4, 168
#: The real videos: test clips of the words models, each named after its word.
EXAMPLES = models.EXAMPLES
#: The plain and the merged model of the real videos.
WORDS = ("sttm-words-plain", "sttm-words")
ATTRIBUTION = "Cooke, Barker, Cunningham, Shao, 2006; CC BY 4.0; cut to single words and to the mouth region"
#: Columns of both tables.
COSTS = ("GMACs a clip", "Compute", "Clips/s (p10 to p90)", "Speed-up (p10 to p90)")
#: How often the real videos are classified, for the timing.
TURNS = 30


# Over 40 lines: most are the options and what they mean.
def run(
    folder: str | Path,
    *,
    clips: int = 360,
    seed: int = 1,
    plain: str = "sttm-motion-plain",
    merged: str = models.DEFAULT,
    words: tuple[str, str] = WORDS,
    batch: int = 8,
    workers: int | None = None,
    advance: Callable[[int, int], None] = lambda videos, total: None,
) -> dict[str, Any]:
    """Make `clips` videos, classify them and the real ones, and write `report.html` with pictures to `folder`.

    Every video is an mp4 file that is read as any other. Each batch goes through a plain and a merged model, in turn,
    so that accuracy and speed are measured on the same videos; the time to read them is reported apart.

    Args:
        folder: videos are written to a folder inside it, and used again by a second run.
        seed: of the videos; not the one that the bundled models were trained on.
        plain, merged: names of two models with the same classes and the same preprocessing.
        words: a plain and a merged model of the words in the real videos.
        batch: videos that go through a model at once.
        workers: processes that make videos; one for each core by default.
        advance: called with the number of videos just made or classified, and with the sum of both kinds in the end.

    Returns:
        {"rows": one record for each model, "speedup": its quantiles over the batches, "ideal_speedup",
        "only_right": videos that only one of the two has right, "machine", ...} of the synthetic videos; "words": the
        same of the real ones; "report": the path of the page. `tables` prints it.

    Raises:
        SttmError: for the seed of the training videos, fewer videos than classes, models that cannot be compared,
            or a folder that cannot be written.
    """
    started = time.perf_counter()
    if seed == TRAINING_SEED:
        raise SttmError(f"seed={seed} made the videos that the bundled models learned from; choose another, such as 1")
    if batch < 1:
        raise SttmError(f"batch={batch} is no number of clips; give one or more")
    synthetic, real = Comparison.load(plain, merged), Comparison.load(*words)
    files = sorted(EXAMPLES.glob("*.mp4"))
    real.take_videos(files, [file.stem for file in files], "install the package again")
    total = clips + len(files)
    made = synthetic.make_videos(Path(folder), clips, seed, workers, lambda n, missing: advance(n, missing + total))
    synthetic.classify_in_turn(batch, lambda videos: advance(videos, made + total))
    real.classify_in_turn(len(files), lambda videos: advance(videos, made + total), TURNS)
    result = synthetic.result() | {"seed": seed, "words": _of_words(real)}
    path = Path(folder) / "report.html"
    path.write_text(_page(result, synthetic, real, str(Path(folder)), batch), encoding="utf-8")
    return result | {"report": str(path), "seconds": round(time.perf_counter() - started, 1)}


def tables(result: dict[str, Any]) -> list[Table]:
    """Return what `run` returned as tables for the terminal."""
    words = result["words"]
    return [
        _table(f"{result['clips']} synthetic videos, {result['machine']}", _cells(result), _note(result)),
        _table(f"{words['clips']} real videos: words read from lips", _words_cells(words), _words_note(words)),
    ]


def _table(title: str, cells: list[list[str]], note: str) -> Table:
    drawn = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    header, *rows = cells
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _of_words(comparison: Comparison) -> dict[str, Any]:
    """Return the figures of the real videos, with what the cards of the models say of their whole test split."""
    result = comparison.result()
    for row in result["rows"]:
        row["card"] = _accuracy_of_card(row["model"])
    return result


def _accuracy_of_card(name: str) -> dict[str, Any] | None:
    """Return the metric at the head of a model card: its "value" and "clips"; None where no card says it."""
    said = front_matter(models.resolve(name) / CARD)
    if "model-index" not in said:
        return None
    metric: dict[str, Any] = said["model-index"][0]["results"][0]["metrics"][0]
    return metric


def _page(result: dict[str, Any], synthetic: Comparison, real: Comparison, folder: str, batch: int) -> str:
    """Return the page: the results, what was run, and clips with pictures."""
    plain, merged = result["rows"]
    percent = [f"{100 * row['top1']:.1f} %" for row in (plain, merged)]
    times, timed, words = f"{result['speedup']['p50']:.2f} times", result["batches_timed"], result["words"]
    clips, classes = result["clips"], len(synthetic.labels)
    where = "" if folder == "demo" else f" {folder}"
    plans = [str(api.plan_of(comparison.networks[1])).splitlines()[0] for comparison in (synthetic, real)]
    picked = _picked(synthetic)
    sections = [
        _section("Synthetic videos", synthetic, _note(result), _cells(result), list(picked), picked),
        _section("Real videos", real, _words_note(words), _words_cells(words), range(len(real.files))),
    ]
    return report(
        title=f"Merging tokens: {times} as fast, {percent[1]} right instead of {percent[0]}",
        summary=f"On synthetic videos the merged model spends {100 * merged['compute']:.0f} % of the multiply-adds; on "
        f"real ones, words read from lips, {100 * words['rows'][1]['compute']:.0f} %, and runs "
        f"{words['speedup']['p50']:.2f} times as fast.",
        sections=sections,
        facts=[
            ("Command", f"sttm demo{where} --clips {clips} --seed {result['seed']}"),
            ("Synthetic videos", f"{clips} mp4 files of {classes} motions; training used seed {TRAINING_SEED}"),
            ("Real videos", f"{words['clips']} test clips of the GRID corpus, speaker s1 ({ATTRIBUTION})"),
            ("Timing", f"{timed} batches of {batch}, and {TURNS} times the real videos as one batch; plain and merged "
             "in turn; fp32, eager; without reading"),
            ("Speed-up", "median over the batches of plain over merged seconds; from the p10 to the p90"),
            ("Top-1", "share of the clips whose best class is right, with Wilson's 95 % interval"),
            ("Plans", "; ".join(plans)),
            ("Machine", result["machine"]),
        ],
    )  # fmt: skip


def _section(
    title: str,
    comparison: Comparison,
    text: str,
    cells: list[list[str]],
    numbers: Sequence[int],
    groups: Mapping[int, str] | None = None,
) -> Section:
    """Return one set of videos; with charts where `groups` says why each clip is shown."""
    header, *rows = cells
    charts = []
    if groups is not None:
        found = [Accuracy.of(torch.stack(scores), comparison.truth_N) for scores in comparison.scores]
        macs = [api.macs(network) / 1e9 for network in comparison.networks]
        charts.append(accuracy_chart([Point(*values) for values in zip(comparison.names, macs, found, strict=True)]))
        best_N = torch.stack(comparison.scores[1]).argmax(-1)
        best = [[number] for number in best_N.tolist()]
        confusion = Confusion.of(len(comparison.labels), comparison.truth_N.tolist(), best)
        charts.append(confusion_chart(comparison.labels, confusion))
    return Section(title, text, header, rows, list(_examples(comparison, numbers, groups or {})), charts)


def _cells(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table of synthetic videos as text, header first."""
    cells = [["Model", "Top-1 (95 % interval)", *COSTS]]
    for row, cost in zip(result["rows"], _costs(result), strict=True):
        low, high = (100 * row["top1_interval"][end] for end in ("low", "high"))
        cells.append([row["model"], f"{100 * row['top1']:.1f} % ({low:.1f} to {high:.1f})", *cost])
    return cells


def _words_cells(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table of real videos as text, header first."""
    cells = [["Model", "Right of these", "Top-1, whole test split", *COSTS]]
    for row, cost in zip(result["rows"], _costs(result), strict=True):
        card = row["card"]
        tested = f"{100 * card['value']:.1f} % of {card['clips']:,} clips" if card else "unknown"
        cells.append([row["model"], f"{row['correct']} of {row['total']}", tested, *cost])
    return cells


def _costs(result: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of COSTS of both models."""
    for row, speedup in zip(result["rows"], ("1", _spread(result["speedup"])), strict=True):
        yield [f"{row['gmacs']:.3g}", f"{row['compute']:.3f}", _spread(row["clips_per_s"]), speedup]


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
        f"Right only with merging: {only['merged']} of {result['clips']} clips; only without: {only['plain']}. "
        f"Reading a clip takes {result['reading_ms']:.0f} ms more, for both."
    )


def _words_note(result: dict[str, Any]) -> str:
    """Return the sentences under the table of real videos."""
    return (
        "Single words, read from the lips of one speaker. "
        f"{result['clips']} clips are an illustration and no measurement: the whole test split, which they are part "
        "of, says how often the models are right. The two were not trained alike (see their model cards). "
        f"Multiply-adds alone would give a speed-up of {result['ideal_speedup']:.2f}."
    )


def _examples(comparison: Comparison, numbers: Sequence[int], groups: Mapping[int, str]) -> Iterator[Example]:
    """Yield the clips of those numbers, each with what the models say and a picture of its merges."""
    model, preprocess = comparison.networks[1], comparison.preprocess
    grid = backbone_of(model).grid(model, api.plan_of(model).clip_shape)
    for number in numbers:
        (sample,) = comparison.read(comparison.files[number : number + 1])
        assert sample.pixels_VTCHW is not None
        with torch.no_grad(), api.trace(model) as maps:
            model(sample.pixels_VTCHW)
        frames_TCHW, truth = restore(sample.pixels_VTCHW[0], preprocess), int(comparison.truth_N[number])
        predictions = []
        for name, scores in zip(comparison.names, comparison.scores, strict=True):
            best, of_truth = int(scores[number].argmax()), float(scores[number][truth])
            score = float(scores[number][best])
            predictions.append(Prediction(name, comparison.labels[best], score, best == truth, of_truth))
        picture = merge_picture(Drawing(frames_TCHW, list(maps), grid), columns=COLUMNS, cell=CELL)
        yield Example(comparison.labels[truth], picture, predictions, groups.get(number, ""))


def _picked(comparison: Comparison) -> dict[int, str]:
    """Return the numbers of the clips to show, those whose class lost and gained the most by merging, and why."""
    truth_1N = comparison.truth_N[:, None]
    plain_N, merged_N = (torch.stack(scores).gather(1, truth_1N)[:, 0] for scores in comparison.scores)
    change_N = merged_N - plain_N
    order = change_N.argsort(stable=True).tolist()
    hurt = [number for number in order if change_N[number] < 0][: PICTURES // 2]
    helped = [number for number in reversed(order) if change_N[number] > 0][: PICTURES // 2]
    return dict.fromkeys(hurt, "Most hurt by merging") | dict.fromkeys(helped, "Most helped by merging")
