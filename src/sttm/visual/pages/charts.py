"""Charts as svg for the report pages: they take their colours from the page, light or dark, and shrink with it.

Legend: K classes, P classes that have clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from sttm.evaluation.metrics import Accuracy, Confusion

#: Most classes that the confusion chart names, and for which it writes counts.
NAMED, NUMBERED = 40, 20
#: Side of a cell of the confusion chart.
CELL = 20
#: Pairs in the list of the most frequent confusions.
PAIRS = 5


@dataclass(frozen=True)
class Point:
    """The accuracy of one model, and what a clip costs it."""

    name: str
    gmacs: float
    accuracy: Accuracy


def accuracy_chart(points: Sequence[Point]) -> str:
    """Return top-1 over multiply-adds, a dot and the 95 % interval for each model."""
    width, height, left, bottom, right, top = 440, 270, 52, 60, 16, 28
    most = 1.15 * max(point.gmacs for point in points)
    ends = [end for point in points for end in point.accuracy.interval]
    low, high = _rounded(min(ends), max(ends))

    def x(gmacs: float) -> float:
        return left + gmacs / most * (width - left - right)

    def y(share: float) -> float:
        return height - bottom - (share - low) / (high - low) * (height - bottom - top)

    parts = []
    step = next(step for step in (0.05, 0.1, 0.2) if (high - low) / step <= 6)
    for share in np.arange(low, high + step / 2, step):
        parts.append(f'<path class="grid" d="M{left} {y(share):.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for gmacs in _ticks(most):
        parts.append(f'<text x="{x(gmacs):.1f}" y="{height - bottom + 18}" text-anchor="middle">{gmacs:.3g}</text>')
    middle = left + (width - left - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 6}" text-anchor="middle">GMACs a clip; top-1 with 95 % interval</text>'
    )
    for number, point in enumerate(points):
        (lower, upper), at = point.accuracy.interval, x(point.gmacs)
        kind = "one" if number == 0 else "two"
        parts.append(f'<path class="bar {kind}" d="M{at:.1f} {y(lower):.1f}V{y(upper):.1f}"/>')
        here = y(point.accuracy.share)
        shape = f'<circle class="{kind}" cx="{at:.1f}" cy="{here:.1f}" r="6"/>'
        if number:
            shape = f'<path class="{kind}" d="M{at - 6:.1f} {here - 6:.1f}h12v12h-12z"/>'
        under = y(upper) - 8 if number == 0 else y(lower) + 17  # apart, wherever the points are
        anchor = "end" if at > width / 2 else "start"
        parts.append(shape)
        parts.append(
            f'<text x="{at:.1f}" y="{under:.1f}" text-anchor="{anchor}">{escape(_short(point.name, 40))}</text>'
        )
    said = "; ".join(f"{p.name}: {100 * p.accuracy.share:.1f} % at {p.gmacs:.3g} GMACs" for p in points)
    return _svg("Accuracy over multiply-adds", said, width, height, parts)


def confusion_chart(labels: Sequence[str], confusion: Confusion) -> str:
    """Return the confusion matrix, a row for each class that has clips, and its most frequent confusions in words."""
    present = confusion.present
    inside_PP = confusion.counts_KK[np.ix_(present, present)]
    outside_P = confusion.counts_KK[present].sum(1) - inside_PP.sum(1)
    columns = [labels[number] for number in present]
    counts = inside_PP
    if outside_P.any():
        counts, columns = np.column_stack((inside_PP, outside_P)), [*columns, "any other class"]
    rows = [labels[number] for number in present]
    side = 8 + 7 * max(len(_short(name)) for name in columns) if len(present) <= NAMED else 4
    parts = list(_cells(counts, rows, columns, side))
    if len(present) <= NAMED:
        parts += [
            f'<text x="{side - 5}" y="{side + row * CELL + 14}" text-anchor="end">{escape(_short(name))}</text>'
            for row, name in enumerate(rows)
        ]
        parts += [
            f'<text transform="translate({side + at * CELL + 14} {side - 5}) rotate(-90)">{escape(_short(name))}</text>'
            for at, name in enumerate(columns)
        ]
    width, height = side + len(columns) * CELL + 2, side + len(rows) * CELL + 2
    said = f"{confusion.top1.correct} of {confusion.top1.total} clips right; a row for each true class"
    return _svg("Confusion matrix", said, width, height, parts) + _pairs(labels, confusion)


def _cells(counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], side: int) -> Iterator[str]:
    """Yield the cells that are not empty, coloured by their share of the row; right ones have a colour of their own."""
    for row, column in np.argwhere(counts).tolist():
        count, total, x, y = int(counts[row, column]), int(counts[row].sum()), side + column * CELL, side + row * CELL
        told = escape(f"{rows[row]}: {count} of {total} taken for {columns[column]}")
        kind, share = "one" if row == column else "two", 0.15 + 0.65 * math.sqrt(count / total)
        box = f'x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill-opacity="{share:.2f}"'
        number = (
            f'<text x="{x + 9.5}" y="{y + 14}" text-anchor="middle">{count}</text>' if len(rows) <= NUMBERED else ""
        )
        yield f'<g><title>{told}</title><rect class="{kind}" {box}/>{number}</g>'


def _pairs(labels: Sequence[str], confusion: Confusion) -> str:
    """Return the most frequent confusions as a list."""
    counts_KK = confusion.counts_KK.copy()
    np.fill_diagonal(counts_KK, 0)
    flat = np.argsort(-counts_KK, axis=None, kind="stable")[:PAIRS]
    pairs = [(*divmod(int(at), len(counts_KK)), int(counts_KK.flat[at])) for at in flat if counts_KK.flat[at]]
    totals = confusion.counts_KK.sum(1)
    items = "".join(
        f"<li>{escape(labels[true])}: {count} of {totals[true]} taken for {escape(labels[other])}</li>"
        for true, other, count in pairs
    )
    return f'<p>Most frequent confusions:</p><ul class="pairs">{items}</ul>' if items else "<p>No confusions.</p>"


def _svg(title: str, said: str, width: float, height: float, parts: Sequence[str]) -> str:
    """Return a picture that says in words what it shows, at most as wide as it was drawn for, twice at small sizes."""
    most = f'style="max-width:{max(1.25 * width, 320):.0f}px"'
    label = escape(f"{title}: {said}", quote=True)
    return f'<svg viewBox="0 0 {width} {height}" {most} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return ends of an axis of shares, multiples of a tenth, at least a fifth apart."""
    low, high = math.floor(10 * low) / 10, math.ceil(10 * high) / 10
    return min(low, max(0.0, high - 0.2)), max(high, min(1.0, low + 0.2))


def _ticks(most: float) -> list[float]:
    """Return a few round numbers from 0 to below `most`."""
    step = 10 ** math.floor(math.log10(most))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if most / s <= 6)
    return [step * number for number in range(int(most / step) + 1)]


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
