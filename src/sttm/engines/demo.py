"""The whole story on this machine, offline: made videos, classified with and without merging, and a page that shows it.

Legend: B clips in a batch, T frames, C colours, H height, W width, K classes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from sttm import models
from sttm.backbones import backbone_of
from sttm.data.preprocess import Preprocess
from sttm.data.synth import SynthSettings, make, video_path
from sttm.data.video import read
from sttm.engines import show
from sttm.errors import SttmError
from sttm.metrics import Accuracy, in_turn, machine, quantiles
from sttm.plugging import plug

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
    turn by turn, so that the same clips give accuracy and speed; reading is not part of the speed, but is told.

    Args:
        folder: videos go to a folder inside it, and are used again by a second run.
        seed: of the videos; not the one that the bundled models were trained on.
        plain, merged: names of two models that know the same classes and take the same pixels.
        batch: clips that go through at once.
        workers: processes that make videos; one a core by default.

    Returns:
        {"rows": one record a model, "speedup": its spread over the batches, "ideal_speedup", "report", "machine",
        "only_right": clips that only the plain or only the merged model has right, ...}; `table` prints it.

    Raises:
        SttmError: for the seed of the training videos, fewer clips than classes, models that do not belong
            together, or a folder that cannot be written.
    """
    started = time.perf_counter()
    if seed == TRAINED_ON:
        raise SttmError(f"seed={seed} made the videos that the bundled models were trained on; choose another, such as 1")
    if batch < 1:
        raise SttmError(f"batch={batch} is no number of clips; give one or more")
    folder = Path(folder)
    contest = _enter(plain, merged)
    videos = _make(folder, SynthSettings("motion", clips, seed, train=0, validation=1, test=0), workers)
    answers = _answers(contest, videos)
    _classify(contest, videos, batch)
    result = _result(contest, answers, seed)
    page = show.report(
        **_words(result, contest, folder, batch), examples=_examples(contest, videos, answers)
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return result | {"report": str(report), "seconds": round(time.perf_counter() - started, 1)}


def table(result: dict[str, Any]) -> Table:
    """What `run` returned, as people read it."""
    drawn = Table(title=f"{result['clips']} made videos, {result['machine']}", title_justify="left", caption=_note(result))
    header, *rows = _cells(result)
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


# --- the contest --------------------------------------------------------------------------------------------


def _enter(plain: str, merged: str) -> Contest:
    """Load both models and see that they can be compared."""
    networks = models.load(plain), models.load(merged)
    for name, network, wanted in zip((plain, merged), networks, (False, True), strict=True):
        if plug.is_merged(network) != wanted:
            what = "a merged model, and this one is plain" if wanted else "a plain model, and this one is merged"
            raise SttmError(f"the demo needs {what}: {name}; name another, or save it so with sttm.save")
    prepares = [Preprocess.from_folder(models.resolve(name)) for name in (plain, merged)]
    labels = [[str(text) for _, text in sorted(network.config.id2label.items())] for network in networks]  # type: ignore[union-attr, operator, arg-type]
    if prepares[0] != prepares[1] or labels[0] != labels[1]:
        raise SttmError(
            f"{plain} and {merged} do not take the same pixels or do not know the same classes; name two that were "
            "trained alike"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first, second = (network.to(device) for network in networks)
    return Contest((plain, merged), (first, second), prepares[0], labels[0], device)


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
        raise SttmError(
            f"{contest.names[1]} knows no class {unknown[0]!r} ({len(unknown)} of the videos' classes are missing); "
            "name models that were trained on the motion videos of sttm synth"
        )
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

    with ThreadPoolExecutor(2) as readers, _progress(len(videos)) as advance:
        for turn, start in enumerate(range(0, len(videos), batch)):
            began = time.perf_counter()
            pixels_BTCHW = torch.cat(list(readers.map(prepare, videos[start : start + batch])))
            contest.reading += time.perf_counter() - began
            pixels_BTCHW = pixels_BTCHW.to(contest.device)
            runs = [partial(forward, network, pixels_BTCHW) for network in contest.networks]
            if turn == 0:
                in_turn(runs, turn, contest.device)  # to warm up
            seconds, logits = in_turn(runs, turn, contest.device)
            contest.batches.append((len(pixels_BTCHW), *seconds))
            for kept, logits_BK in zip(contest.scores, logits, strict=True):
                kept.extend(logits_BK.float().softmax(-1).cpu())
            advance(len(pixels_BTCHW))


# --- what came out ------------------------------------------------------------------------------------------


def _result(contest: Contest, answers_N: Tensor, seed: int) -> dict[str, Any]:
    """The figures; speeds are over full batches, as a smaller last one is slower by clip."""
    full = max(size for size, *_ in contest.batches)
    timed = [batch for batch in contest.batches if batch[0] == full]
    macs = [plug.macs(network) for network in contest.networks]
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
    cells = [["Model", "Top-1 (95 % interval)", "GMACs a clip", "Compute", "Clips/s (p10 to p90)", "Speed-up (p10 to p90)"]]
    speedups = [{"p10": 1.0, "p50": 1.0, "p90": 1.0}, result["speedup"]]
    for row, speedup in zip(result["rows"], speedups, strict=True):
        low, high = (100 * row["top1_interval"][end] for end in ("low", "high"))
        speed = row["clips_per_s"]
        cells.append(
            [
                row["model"],
                f"{100 * row['top1']:.1f} % ({low:.1f} to {high:.1f})",
                f"{row['gmacs']:.3g}",
                f"{row['compute']:.3f}",
                f"{_figures(speed['p50'])} ({_figures(speed['p10'])} to {_figures(speed['p90'])})",
                f"{speedup['p50']:.2f} ({speedup['p10']:.2f} to {speedup['p90']:.2f})",
            ]
        )
    cells[1][-1] = "1"
    return cells


def _figures(value: float) -> str:
    """Three figures, never as a power of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _note(result: dict[str, Any]) -> str:
    only = result["only_right"]
    return (
        f"Multiply-adds alone would give a speed-up of {result['ideal_speedup']:.2f}. "
        f"{only['merged']} clips only the merged model has right, {only['plain']} only the plain one. "
        f"Reading a clip takes {result['reading_ms']:.0f} ms more, for both."
    )


def _words(result: dict[str, Any], contest: Contest, folder: Path, batch: int) -> dict[str, Any]:
    """All of the report but its pictures."""
    header, *rows = _cells(result)
    plain, merged = result["rows"]
    where = "" if folder == Path("demo") else f" {folder}"
    model = contest.networks[1]
    sizes = f"batches of {batch}, {result['batches_timed']} of them timed, plain and merged in turn"
    return {
        "title": f"Merging tokens: {result['speedup']['p50']:.2f} times as fast, "
        f"{100 * merged['top1']:.1f} % right instead of {100 * plain['top1']:.1f} %",
        "summary": f"The merged model spends {merged['compute']:.0%} of the plain one's multiply-adds. {_note(result)}",
        "header": header,
        "rows": rows,
        "facts": [
            ("Command", f"sttm demo{where} --clips {result['clips']} --seed {result['seed']}"),
            ("Videos", f"{result['clips']} made mp4 files of {len(contest.labels)} motions; training used seed {TRAINED_ON}"),
            ("Timing", f"{sizes}; fp32, eager; the models alone, without reading"),
            ("Speed-up", "median over the batches of plain seconds over merged seconds; the interval is p10 to p90"),
            ("Top-1", "share of the clips whose best class is right, with Wilson's 95 % interval"),
            ("Plan", str(plug.plan_of(model)).splitlines()[0]),
            ("Machine", result["machine"]),
        ],
    }


def _examples(contest: Contest, videos: Sequence[Video], answers_N: Tensor) -> Iterator[show.Example]:
    """A few clips: one of each way to disagree, where there is one, then others spread over the classes."""
    best_MN = [torch.stack(scores).argmax(-1) for scores in contest.scores]
    model = contest.networks[1]
    grid = backbone_of(model).grid(model, plug.plan_of(model).clip_shape)
    for number in _picked([best_N == answers_N for best_N in best_MN]):
        pixels_1TCHW = _pixels(contest.preprocess, videos[number])
        with torch.no_grad(), plug.trace(model) as maps:
            model(pixels_1TCHW.to(contest.device))
        made = contest.preprocess
        frames_TCHW = show.restore(pixels_1TCHW[0], made.mean, made.std, made.rescale_factor, made.offset)
        guesses = tuple(
            (name, contest.labels[int(best_N[number])], float(scores[number].max()), bool(best_N[number] == answers_N[number]))
            for name, best_N, scores in zip(contest.names, best_MN, contest.scores, strict=True)
        )
        yield show.Example(videos[number].label, show.merge_picture(frames_TCHW, maps, grid), guesses)


def _picked(right_MN: Sequence[Tensor]) -> list[int]:
    """Numbers of the clips to show, in order; the same every time."""
    plain_N, merged_N = right_MN
    lessons = [merged_N & ~plain_N, plain_N & ~merged_N, ~plain_N & ~merged_N]
    found = [int(lesson_N.nonzero()[0]) for lesson_N in lessons if lesson_N.any()]
    step = max(1, len(plain_N) // PICTURES)
    spread = [number for number in range(0, len(plain_N), step) if number not in found]
    return sorted([*found, *spread][:PICTURES])


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("classifying", total=total)
        yield lambda count: bar.advance(task, count)
