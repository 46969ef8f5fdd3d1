"""The plot of `sttm bench`: clips/s over multiply-adds, or over the batch where several were timed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttm.errors import SttmError

Row = dict[str, Any]
#: Styles of lines, one for each engine and dtype.
STYLES = ("-", "--", ":", "-.")


def check_plot(path: Path) -> None:
    """Raise SttmError for a plot that could not be written: another format, no such folder, or no matplotlib."""
    if path.suffix.lower() != ".png":
        raise SttmError(f"--plot={path} is not a .png file; give it a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise SttmError(f"--plot={path}: there is no folder {path.parent}; make it, or choose another")
    if importlib.util.find_spec("matplotlib") is None:
        raise SttmError("--plot needs sttm[train] (matplotlib): pip install 'sttm[train]'")


def plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Plot the rows of `speed.run` as a png, whole or not at all: a panel for each model.

    With one batch, clips/s stands over the multiply-adds of a clip: a line for each method on each engine and dtype,
    all of which start at the plain model. With several, it stands over the batch: a line for each variant.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    by_batch = len({row["batch"] for row in rows}) > 1
    figure = Figure(figsize=(6 * len(models) + 2.5, 4.8), dpi=140, layout="constrained")
    for number, model in enumerate(models):
        axes = figure.add_subplot(1, len(models), number + 1)
        mine = [row for row in rows if row["model"] == model]
        (_over_batch if by_batch else _over_macs)(axes, mine)
        batch = "" if by_batch else f", {mine[0]['batch']} clip{'s' * (mine[0]['batch'] > 1)} at a time"
        axes.set_title(f"{model}{batch}".replace("$", r"\$"), fontsize=10)
        axes.set_ylabel("clips/s")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(machine, fontsize=9, color="grey")
    _save(figure, path)


def _over_macs(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a line for each method on each engine and dtype, from the plain model on."""
    places = list(dict.fromkeys((row["mode"], row["dtype"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "plain"))
    for style, place in zip(_styles(len(places)), places, strict=True):
        here = [row for row in rows if (row["mode"], row["dtype"]) == place]
        (plain,) = [row for row in here if row["method"] == "plain"]
        for colour, method in enumerate(methods):
            mine = [row for row in here if row["method"] == method]
            line = sorted([plain, *mine], key=lambda row: row["macs"])
            x, y = [row["macs"] / 1e9 for row in line], [row["clips_per_s"] for row in line]
            axes.plot(x, y, style, color=f"C{colour}", marker="o", markersize=4, label=_label(method, place, places))
        point = ([plain["macs"] / 1e9], [plain["clips_per_s"]])
        axes.plot(*point, "s", color="black", markersize=5, label="plain" if place == places[-1] else None)
    axes.set_xlim(left=0)
    axes.set_xlabel("multiply-adds of a clip (G)")


def _over_batch(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a line for each variant on each engine and dtype."""
    places = list(dict.fromkeys((row["mode"], row["dtype"]) for row in rows))
    variants = list(dict.fromkeys((row["method"], row["compute"]) for row in rows))
    for style, place in zip(_styles(len(places)), places, strict=True):
        for number, (method, compute) in enumerate(variants):
            line = [row for row in rows if _variant(row) == (method, compute, *place)]
            line.sort(key=lambda row: row["batch"])
            colour = "black" if method == "plain" else f"C{number - 1}"
            name = method if method == "plain" else f"{method} {compute:.2f}"
            x, y = [row["batch"] for row in line], [row["clips_per_s"] for row in line]
            axes.plot(x, y, style, color=colour, marker="o", markersize=4, label=_label(name, place, places))
    batches = sorted({row["batch"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel("clips at a time")


def _variant(row: Row) -> tuple[Any, ...]:
    return row["method"], row["compute"], row["mode"], row["dtype"]


def _styles(count: int) -> list[str]:
    return [STYLES[number % len(STYLES)] for number in range(count)]


def _label(name: str, place: tuple[str, str], places: Sequence[tuple[str, str]]) -> str:
    """Return a line's entry in the legend; the engine and the dtype where there are several."""
    return f"{name}, {' '.join(place)}" if len(places) > 1 else name


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    except OSError as error:
        raise SttmError(f"cannot write --plot={path}: {error.strerror}; choose another file") from error
    finally:
        part.unlink(missing_ok=True)
