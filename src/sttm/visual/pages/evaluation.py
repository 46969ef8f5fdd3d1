"""The page of `sttm eval`: figures with intervals, accuracy over multiply-adds, confusion, clips hurt and helped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sttm.data.datasets.video_set import VideoSet
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.devices import device_of, machine
from sttm.errors import SttmError
from sttm.evaluation.report import Answer, Evaluation
from sttm.patching import api
from sttm.visual.pages.charts import Point, accuracy_chart, confusion_chart
from sttm.visual.pages.page import Example, Prediction, Section, report
from sttm.visual.pictures import merge_picture
from sttm.visual.show import look, read_clip

#: Clips with pictures of each kind; their frames side by side, few enough for a phone, and how wide each is.
CLIPS, COLUMNS, CELL = 3, 4, 168

Picture = Callable[[Answer], Example]


@dataclass(frozen=True)
class Run:
    """One model on the data set."""

    name: str
    network: nn.Module
    evaluation: Evaluation

    @property
    def point(self) -> Point:
        return Point(self.name, api.macs(self.network) / 1e9, self.evaluation.top1)


def page(runs: Sequence[Run], videos: VideoSet, preprocess: Preprocess, facts: Sequence[tuple[str, str]]) -> str:
    """Return the page of a plain model, or of two runs on the same videos: without merging, and with it.

    Args:
        facts: what was run, as pairs of a name and a text.
    """
    last = runs[-1]
    points, labelled = [run.point for run in runs], last.evaluation.top1.total > 0
    shares = [f"{100 * run.evaluation.top1.share:.1f} %" for run in runs]
    title = f"Top-1 {shares[-1]}" + (f" with merging, {shares[0]} without" if runs[1:] else "")
    charts = []
    if labelled:
        charts = [accuracy_chart(points), confusion_chart(last.evaluation.labels, last.evaluation.confusion)]
    section = Section(
        "Accuracy",
        _sentence(runs),
        ["Model", "Compute", "GMACs a clip", "Clips", "Top-1 (95 % interval)", "Top-5", "Mean class"],
        [_row(run, points) for run in runs],
        list(_examples(runs, videos, preprocess)) if runs[1:] and labelled else [],
        charts,
    )
    spent = f"{100 * points[-1].gmacs / points[0].gmacs:.0f} % of the multiply-adds" if runs[1:] else "no merging"
    what = f"{last.evaluation.clips:,} clips, {spent}"
    return report(
        title if labelled else "No labels, no accuracy", what, [section], [*facts, ("Machine", machine(device_of()))]
    )


def most_changed(runs: Sequence[Run]) -> list[tuple[str, Answer]]:
    """Return the clips whose class lost the most and those whose class gained the most by merging, with the kind."""
    before, after = ({a.position: a for a in run.evaluation.answers if a.of_truth is not None} for run in runs)
    change = {n: (after[n].of_truth or 0.0) - (before[n].of_truth or 0.0) for n in before if n in after}
    hurt = sorted((n for n in change if change[n] < 0), key=lambda n: change[n])[:CLIPS]
    helped = sorted((n for n in change if change[n] > 0), key=lambda n: -change[n])[:CLIPS]
    kinds = (("Most hurt by merging", hurt), ("Most helped by merging", helped))
    return [(kind, after[number]) for kind, numbers in kinds for number in numbers]


def _examples(runs: Sequence[Run], videos: VideoSet, preprocess: Preprocess) -> Iterator[Example]:
    """Yield the clips that merging changed most, with both answers and its picture; unreadable ones not."""
    before = {answer.position: answer for answer in runs[0].evaluation.answers}
    labels, plain = runs[1].evaluation.labels, runs[0].network
    for kind, answer in most_changed(runs):
        video: Video = videos.videos[answer.position]
        try:
            shown = look(read_clip(video, preprocess), runs[1].network, preprocess, (plain, ""))
        except SttmError:  # deleted meanwhile
            continue
        assert answer.truth is not None
        said = [
            _prediction(run.name, labels, a) for run, a in zip(runs, (before[answer.position], answer), strict=True)
        ]
        picture = merge_picture(shown.drawing, columns=COLUMNS, cell=CELL)
        yield Example(f"{labels[answer.truth]}: {Path(answer.path).name}", picture, said, kind)


def _prediction(name: str, labels: Sequence[str], answer: Answer) -> Prediction:
    right = answer.best[0] == answer.truth
    return Prediction(name, labels[answer.best[0]], answer.scores[0], right, answer.of_truth)


def _row(run: Run, points: Sequence[Point]) -> list[str]:
    evaluation, gmacs = run.evaluation, run.point.gmacs
    cells = [run.name, f"{gmacs / points[0].gmacs:.3f}" if points[1:] else "1", f"{gmacs:.3g}", f"{evaluation.clips:,}"]
    if not evaluation.top1.total:
        return [*cells, "no labels", "", ""]
    low, high = (100 * end for end in evaluation.top1.interval)
    top1 = f"{100 * evaluation.top1.share:.1f} % ({low:.1f} to {high:.1f})"
    return [
        *cells,
        top1,
        f"{100 * evaluation.confusion.top5.share:.1f} %",
        f"{100 * evaluation.confusion.mean_class:.1f} %",
    ]


def _sentence(runs: Sequence[Run]) -> str:
    """Return what the table does not say: videos that only one of two models has right, and those not counted."""
    errors = len(runs[-1].evaluation.errors)
    left_out = f" {errors} videos could not be read and are not counted." if errors else ""
    if not runs[1:]:
        return f"One model, plain.{left_out}"
    right = [{a.position for a in run.evaluation.answers if a.best and a.best[0] == a.truth} for run in runs]
    only = f"Right only with merging: {len(right[1] - right[0])} clips; only without: {len(right[0] - right[1])}."
    return f"The same videos without and with merging. {only}{left_out}"
