"""The results of an evaluation: figures, a table of the classes, every prediction, a plot of the confusion matrix.

Legend: K classes.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from sttm.errors import SttmError
from sttm.evaluation.metrics import Accuracy, Confusion

Format = Literal["csv", "parquet"]

#: Most classes for which the confusion plot names the classes, and for which it writes the counts.
NAMED, NUMBERED = 60, 20
#: Classes that are kept of each video, enough for top-5.
BEST = 5


@dataclass(frozen=True)
class Answer:
    """The result for one video: the classes that scored highest, or an error."""

    position: int
    """In the list, counted from 0."""
    path: str
    truth: int | None
    """The model's number of its class; None where the list has no label."""
    best: tuple[int, ...] = ()
    """Classes in the order of their scores, the highest first, at most `BEST`."""
    scores: tuple[float, ...] = ()
    of_truth: float | None = None
    """The score of its class; None where there is no label, or an error."""
    warnings: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of a model on a data set."""

    labels: tuple[str, ...]
    """The model's names of the classes, by number."""
    confusion: Confusion
    """Of the videos that could be read and have a label."""
    answers: tuple[Answer, ...]
    """One for each listed video whose file exists, in the order of the list."""
    missing: tuple[str, ...]
    """Listed paths whose files do not exist."""
    seconds: float

    @property
    def top1(self) -> Accuracy:
        return self.confusion.top1

    @property
    def errors(self) -> tuple[tuple[str, str], ...]:
        """Return (path, reason) of the videos that were counted neither as right nor as wrong."""
        unread = [(answer.path, answer.error) for answer in self.answers if answer.error is not None]
        return (*unread, *((path, "is listed, but there is no such file") for path in self.missing))

    @property
    def clips(self) -> int:
        """Return the number of videos that the model classified."""
        return sum(answer.error is None for answer in self.answers)

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Return a row for each class that has clips, with its most frequent mistake."""
        rows = []
        for number in self.confusion.present:
            accuracy, mistake = self.confusion.of_class(number), self.confusion.taken_for(number)
            rows.append(
                {
                    "class": self.labels[number],
                    "clips": accuracy.total,
                    "correct": accuracy.correct,
                    "share": accuracy.share,
                    "low": accuracy.interval[0],
                    "high": accuracy.interval[1],
                    "taken_for": None if mistake is None else self.labels[mistake[0]],
                    "times": 0 if mistake is None else mistake[1],
                }
            )
        return rows

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """Return a row for each answer: label, classes with the highest scores, error or warnings."""
        rows = []
        for answer in self.answers:
            row: dict[str, Any] = {"path": answer.path}
            row["label"] = None if answer.truth is None else self.labels[answer.truth]
            for rank in range(min(BEST, len(self.labels))):
                known = rank < len(answer.best)
                row[f"prediction_{rank + 1}"] = self.labels[answer.best[rank]] if known else None
                row[f"score_{rank + 1}"] = answer.scores[rank] if known else None
            rows.append(row | {"note": answer.error or "; ".join(answer.warnings) or None})
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the figures that are printed and written; accuracies are None where the list has no labels."""
        top1, top5 = self.confusion.top1, self.confusion.top5
        labelled = top1.total > 0
        return {
            "clips": self.clips,
            "labelled": top1.total,
            "unreadable": len(self.errors),
            "top1": top1.share if labelled else None,
            "top1_interval": list(top1.interval) if labelled else None,
            "top5": top5.share if labelled else None,
            "top5_interval": list(top5.interval) if labelled else None,
            "mean_class": self.confusion.mean_class if labelled else None,
            "correct": top1.correct,
            "correct_among_five": top5.correct,
            "classes": len(self.confusion.present),
            "warnings": sum(bool(answer.warnings) for answer in self.answers),
            "seconds": round(self.seconds, 3),
            "clips_per_s": round(self.clips / self.seconds, 3) if self.seconds else None,
        }


def make_folder(folder: Path, setting: str) -> None:
    """Make the folder that a setting or option names; raise SttmError if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SttmError(f"cannot write to {setting}={folder}: {error.strerror}; choose another folder") from error


def check_page(path: Path) -> None:
    """Raise SttmError if --report names no page, or a folder that cannot be written."""
    if path.suffix not in (".html", ".htm"):
        raise SttmError(f"--report={path} is no page; give the name of a .html file")
    make_folder(path.parent, "the folder of --report")


def write_page(html: str, path: Path) -> None:
    """Write a page, whole or not at all."""
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        part.write_text(html, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise SttmError(f"cannot write --report={path}: {error.strerror}; choose another file") from error
    finally:
        part.unlink(missing_ok=True)


def check_packages(format: Format) -> None:
    """Raise SttmError if a package that `write` needs is missing."""
    for package in ("matplotlib", *(("pyarrow",) if format == "parquet" else ())):
        if importlib.util.find_spec(package) is None:
            raise SttmError(f"writing results needs sttm[train] ({package}): pip install 'sttm[train]'")


def write(evaluation: Evaluation, folder: Path, summary: dict[str, Any], format: Format = "csv") -> None:
    """Write summary.json, predictions.csv or .parquet, and where there are labels per_class.csv and confusion.png.

    The files appear when all of them are written; if one cannot be, those of an earlier evaluation stay as they were.
    """
    with TemporaryDirectory(prefix=".sttm-", dir=folder) as name:
        part = Path(name)
        _write_table(part / f"predictions.{format}", evaluation.predictions)
        if evaluation.top1.total:
            _write_table(part / "per_class.csv", evaluation.per_class)
            draw(evaluation, part / "confusion.png")
        (part / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        for file in sorted(part.iterdir()):
            file.replace(folder / file.name)


def draw(evaluation: Evaluation, path: Path) -> None:
    """Plot the confusion matrix as a png: a row for each class that has clips, coloured by shares of them.

    Up to `NAMED` classes are named at the axes, and up to `NUMBERED` have their counts in the cells; of more classes
    the axes show their rows in per_class.csv. Columns are the same classes, and one for all others if clips were taken
    for any.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts_KK, present = evaluation.confusion.counts_KK, evaluation.confusion.present
    inside_PP = counts_KK[np.ix_(present, present)]
    outside_P = counts_KK[present].sum(1) - inside_PP.sum(1)
    columns = [evaluation.labels[number] for number in present]
    if outside_P.any():
        inside_PP, columns = np.column_stack((inside_PP, outside_P)), [*columns, "any other class"]
    shares_PP = inside_PP / counts_KK[present].sum(1, keepdims=True)
    many, named = len(present), len(present) <= NAMED
    side = min(max(5.0, 0.35 * many), 20.0) if named else 14.0
    figure = Figure(figsize=(side + 2, side + 1), dpi=150 if named else 200, layout="constrained")
    axes = figure.add_subplot()
    # With many classes a single mistake is a faint dot: there, small shares are drawn darker than they are.
    shades = PowerNorm(1 if named else 0.4, vmin=0, vmax=1)
    image = axes.imshow(shares_PP, cmap="Blues", norm=shades, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the class's clips")
    if named:
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90)
        axes.set_yticks(range(many), [_short(evaluation.labels[number]) for number in present])
    if many <= NUMBERED:
        for (row, column), count in np.ndenumerate(inside_PP):
            if count:
                colour = "white" if shares_PP[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for" if named else "taken for (row of the class in per_class.csv, from 0)")
    axes.set_ylabel("class" if named else "class (its row in per_class.csv, from 0)")
    top1 = evaluation.top1
    axes.set_title(f"top-1 {top1.share:.1%}: {top1.correct} of {top1.total} clips, {many} classes")
    figure.savefig(path)


def _short(name: str) -> str:
    """Return a class name short enough for an axis, its dollar signs escaped, which would start a formula."""
    return (name if len(name) <= 32 else f"{name[:31]}\N{HORIZONTAL ELLIPSIS}").replace("$", r"\$")


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write records with equal keys as csv, or as parquet where the suffix says so."""
    names = list(rows[0]) if rows else ["path"]
    if path.suffix == ".csv":
        # File names may hold bytes that are no text: they are written unchanged.
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.DictWriter(file, names, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        return
    import pyarrow
    import pyarrow.parquet

    columns = {name: [_text(row[name]) for row in rows] for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _text(value: Any) -> Any:
    """Return a value that parquet can hold: text in valid UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
