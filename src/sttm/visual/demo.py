"""The whole story, offline: made videos, classified with and without merging, and a page that shows it.

Legend: B clips in a batch, T frames, C colours, H height, W width, K classes.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from sttm import models
from sttm.backbones import backbone_of
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import read
from sttm.errors import SttmError
from sttm.evaluation.metrics import Accuracy, in_turn, machine, quantiles
from sttm.patching import api
from sttm.synth.videos import SynthSettings, make, video_path
from sttm.visual import pictures as show

#: The seed of the videos that the bundled models were trained on.
TRAINED_ON = 0
#: Clips with pictures in the report.
PICTURES = 6


@dataclass(frozen=True)
class Video:
    """A made video and what happens in it."""

    path: Path
    label: str


@dataclass
class Contest:
    """Two models on the same clips: the plain one first, the merged one second."""

    names: tuple[str, str]
    networks: tuple[nn.Module, nn.Module]
    preprocess: Preprocess
    labels: list[str]
    device: torch.device
    scores: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    """Class probabilities [K] of each clip, by model."""
    batches: list[tuple[int, float, float]] = field(default_factory=list)
    """Clips, and the seconds of either model, of each batch."""
    reading: float = 0.0
    """Seconds to decode and prepare all clips."""


def run(
    folder: str | Path,
    *,
    clips: int = 360,
    seed: int = 1,
    plain: str = "sttm-motion-plain",
    merged: str = models.DEFAULT,
    batch: int = 8,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make `clips` videos, classify them with two models, and write `report.html` with pictures to `folder`.

    Every video is an mp4 file that is decoded and prepared as any other. Each batch goes through both models,
    turn by turn, so that the same clips give accuracy and speed; reading is told apart from both.

    Args:
        folder: videos go to a folder inside it, and are used again by a second run.
        seed: of the videos; not the one that the bundled models were trained on.
        plain, merged: names of two models that know the same classes and take the same pixels.
        batch: clips that go through at once.
        workers: processes that make videos; one a core by default.

    Returns:
        {"rows": one record a model, "speedup": its spread over the batches, "ideal_speedup", "report",
        "machine", "only_right": clips that only one of the two has right, ...}; `table` prints it.

    Raises:
        SttmError: for the seed of the training videos, fewer clips than classes, models that do not belong
            together, or a folder that cannot be written.
    """
    started = time.perf_counter()
    if seed == TRAINED_ON:
        raise SttmError(f"seed={seed} made the videos that the bundled models learned from; choose another, such as 1")
    if batch < 1:
        raise SttmError(f"batch={batch} is no number of clips; give one or more")
    folder = Path(folder)
    contest = _enter(plain, merged)
    videos = _make(folder, SynthSettings("motion", clips, seed, train=0, validation=1, test=0), workers)
    answers = _answers(contest, videos)
    _classify(contest, videos, batch)
    result = _result(contest, answers, seed)
    report = folder / "report.html"
    examples = list(_examples(contest, videos, answers))
    report.write_text(_page(result, contest, f"{folder}", batch, examples), encoding="utf-8")
    return result | {"report": str(report), "seconds": round(time.perf_counter() - started, 1)}


def table(result: dict[str, Any]) -> Table:
    """What `run` returned, as people read it."""
    title = f"{result['clips']} made videos, {result['machine']}"
    drawn = Table(title=title, title_justify="left", caption=_note(result), caption_justify="left")
    header, *rows = _cells(result)
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


# --- the contest --------------------------------------------------------------------------------------------


def _enter(plain: str, merged: str) -> Contest:
    """Load both models and see that they can be compared."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = models.load(plain).to(device), models.load(merged).to(device)
    if api.is_merged(networks[0]):
        raise SttmError(f"the demo needs a plain model to compare with, and {plain} is merged; name its plain twin")
    if not api.is_merged(networks[1]):
        raise SttmError(f"the demo needs a merged model, and {merged} is plain; sttm.apply and sttm.save make one")
    prepares = [Preprocess.from_folder(models.resolve(name)) for name in (plain, merged)]
    labels = [_labels(network) for network in networks]
    if prepares[0] != prepares[1] or labels[0] != labels[1]:
        wrong = f"{plain} and {merged} do not take the same pixels or do not know the same classes"
        raise SttmError(f"{wrong}; name two that were trained alike")
    return Contest((plain, merged), networks, prepares[0], labels[0], device)


def _labels(network: nn.Module) -> list[str]:
    id2label: dict[int, str] = network.config.id2label  # type: ignore[union-attr, assignment]
    return [id2label[index] for index in range(len(id2label))]


def _make(folder: Path, settings: SynthSettings, workers: int | None) -> list[Video]:
    """The videos, made now or by an earlier run, with the labels that their annotation file gives."""
    place = make(folder / f"motion-{settings.clips}-clips-seed-{settings.seed}", settings, workers=workers)
    rows = json.loads((place / "validation.json").read_text(encoding="utf-8"))
    templates = {int(row["id"]): row["template"].replace("[", "").replace("]", "") for row in rows}
    return [Video(place / video_path(settings, index), templates[index]) for index in range(settings.clips)]


def _answers(contest: Contest, videos: Sequence[Video]) -> Tensor:
    """The right class of every video [N]."""
    numbers = {label: number for number, label in enumerate(contest.labels)}
    unknown = sorted({video.label for video in videos} - numbers.keys())
    if unknown:
        wrong = f"{contest.names[1]} knows no class {unknown[0]!r}"
        raise SttmError(f"{wrong}; name models that were trained on the motion videos of sttm synth")
    return torch.tensor([numbers[video.label] for video in videos])


def _pixels(preprocess: Preprocess, video: Video) -> Tensor:
    (clip,) = read(video.path, preprocess.sampling)
    return preprocess(clip.frames_TCHW)


def _classify(contest: Contest, videos: Sequence[Video], batch: int) -> None:
    """Send every video through both models; nothing else runs while a model is timed."""
    prepare = partial(_pixels, contest.preprocess)

    def forward(network: nn.Module, pixels_BTCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return network(pixels_BTCHW).logits

    with ThreadPoolExecutor(2) as readers:
        for turn, start in enumerate(_bar(range(0, len(videos), batch))):
            began = time.perf_counter()
            pixels_BTCHW = torch.cat(list(readers.map(prepare, videos[start : start + batch])))
            contest.reading += time.perf_counter() - began
            pixels_BTCHW = pixels_BTCHW.to(contest.device)
            runs = [partial(forward, network, pixels_BTCHW) for network in contest.networks]
            if turn == 0:
                in_turn(runs, turn, contest.device)  # to warm up
            seconds, logits = in_turn(runs, turn, contest.device)
            contest.batches.append((len(pixels_BTCHW), seconds[0], seconds[1]))
            for kept, logits_BK in zip(contest.scores, logits, strict=True):
                kept.extend(logits_BK.float().softmax(-1).cpu())


# --- what came out ------------------------------------------------------------------------------------------


def _result(contest: Contest, answers_N: Tensor, seed: int) -> dict[str, Any]:
    """The figures; speeds are over full batches, as a smaller last one is slower by clip."""
    full = max(size for size, *_ in contest.batches)
    timed = [batch for batch in contest.batches if batch[0] == full]
    macs = [api.macs(network) for network in contest.networks]
    right_MN = [torch.stack(scores).argmax(-1) == answers_N for scores in contest.scores]
    rows = []
    for number, name in enumerate(contest.names):
        accuracy = Accuracy.of(torch.stack(contest.scores[number]), answers_N)
        low, high = accuracy.interval
        rows.append(
            {
                "model": name,
                "compute": macs[number] / macs[0],
                "gmacs": macs[number] / 1e9,
                **asdict(accuracy),
                "top1": accuracy.share,
                "top1_interval": {"low": low, "high": high},
                "clips_per_s": quantiles([full / batch[1 + number] for batch in timed]),
            }
        )
    return {
        "rows": rows,
        "speedup": quantiles([plain / merged for _, plain, merged in timed]),
        "ideal_speedup": macs[0] / macs[1],
        "only_right": {
            "plain": int((right_MN[0] & ~right_MN[1]).sum()),
            "merged": int((right_MN[1] & ~right_MN[0]).sum()),
        },
        "batches_timed": len(timed),
        "reading_ms": 1000 * contest.reading / len(answers_N),
        "clips": len(answers_N),
        "seed": seed,
        "machine": machine(contest.device),
    }


def _cells(result: dict[str, Any]) -> list[list[str]]:
    """The table in words, header first."""
    cells = [["Model", "Top-1 (95 % interval)", "GMACs a clip", "Compute"]]
    cells[0] += ["Clips/s (p10 to p90)", "Speed-up (p10 to p90)"]
    for row, speedup in zip(result["rows"], ("1", _spread(result["speedup"])), strict=True):
        low, high = (100 * row["top1_interval"][end] for end in ("low", "high"))
        top1 = f"{100 * row['top1']:.1f} % ({low:.1f} to {high:.1f})"
        cost = [f"{row['gmacs']:.3g}", f"{row['compute']:.3f}"]
        cells.append([row["model"], top1, *cost, _spread(row["clips_per_s"]), speedup])
    return cells


def _spread(values: dict[str, float]) -> str:
    """Median and tenths in three figures, never as a power of ten."""
    digits = max(0, 2 - math.floor(math.log10(values["p50"])))
    low, middle, high = (f"{values[name]:.{digits}f}" for name in ("p10", "p50", "p90"))
    return f"{middle} ({low} to {high})"


def _note(result: dict[str, Any]) -> str:
    only = result["only_right"]
    return (
        f"Multiply-adds alone would give a speed-up of {result['ideal_speedup']:.2f}. "
        f"Of {result['clips']} clips, {only['merged']} are right only with merging and {only['plain']} only "
        f"without. Reading a clip takes {result['reading_ms']:.0f} ms more, for both."
    )


def _page(result: dict[str, Any], contest: Contest, folder: str, batch: int, examples: Sequence[show.Example]) -> str:
    """The report: what came out, what was run, and clips with pictures."""
    header, *cells = _cells(result)
    plain, merged = result["rows"]
    percent = [f"{100 * row['top1']:.1f} %" for row in (plain, merged)]
    times, timed = f"{result['speedup']['p50']:.2f} times", result["batches_timed"]
    clips, classes = result["clips"], len(contest.labels)
    where = "" if folder == "demo" else f" {folder}"
    return show.report(
        title=f"Merging tokens: {times} as fast, {percent[1]} right instead of {percent[0]}",
        summary=f"The merged model spends {100 * merged['compute']:.0f} % of the multiply-adds. {_note(result)}",
        header=header,
        rows=cells,
        facts=[
            ("Command", f"sttm demo{where} --clips {clips} --seed {result['seed']}"),
            ("Videos", f"{clips} made mp4 files of {classes} motions; training used seed {TRAINED_ON}"),
            ("Timing", f"{timed} batches of {batch}, plain and merged in turn; fp32, eager; without reading"),
            ("Speed-up", "median over the batches of plain over merged seconds; from the p10 to the p90"),
            ("Top-1", "share of the clips whose best class is right, with Wilson's 95 % interval"),
            ("Plan", str(api.plan_of(contest.networks[1])).splitlines()[0]),
            ("Machine", result["machine"]),
        ],
        examples=examples,
    )


def _examples(contest: Contest, videos: Sequence[Video], answers_N: Tensor) -> Iterator[show.Example]:
    """A few clips: one of each way to disagree, where there is one, then others spread over the classes."""
    best_MN = [torch.stack(scores).argmax(-1) for scores in contest.scores]
    model = contest.networks[1]
    grid = backbone_of(model).grid(model, api.plan_of(model).clip_shape)
    made = contest.preprocess
    for number in _picked([best_N == answers_N for best_N in best_MN], len(contest.labels)):
        pixels_1TCHW = _pixels(made, videos[number])
        with torch.no_grad(), api.trace(model) as maps:
            model(pixels_1TCHW.to(contest.device))
        frames_TCHW = show.restore(pixels_1TCHW[0], made.mean, made.std, made.rescale_factor, made.offset)
        guesses = []
        for name, best_N, scores in zip(contest.names, best_MN, contest.scores, strict=True):
            best = int(best_N[number])
            right = best == int(answers_N[number])
            guesses.append(show.Guess(name, contest.labels[best], float(scores[number][best]), right))
        yield show.Example(videos[number].label, show.merge_picture(frames_TCHW, maps, grid), guesses)


def _picked(right_MN: Sequence[Tensor], classes: int) -> list[int]:
    """Numbers of the clips to show: some of different classes, then one of each way to go wrong, if any."""
    plain_N, merged_N = right_MN
    lessons = [merged_N & ~plain_N, plain_N & ~merged_N, ~plain_N & ~merged_N]
    found = [int(lesson_N.nonzero()[0]) for lesson_N in lessons if lesson_N.any()]
    # The classes take turns: the first so many clips are one of each.
    spread = [number for number in range(0, classes, max(1, classes // PICTURES)) if number not in found]
    return [*spread[: PICTURES - len(found)], *found]


def _bar(batches: Sequence[int]) -> Iterable[int]:
    """The same, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(batches, "Classifying", console=console, transient=True, disable=not console.is_terminal)
