"""Tables and plots of a study: means and deviations over seeds, paired tests, markdown.

Legend: S seeds, N clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

Row = dict[str, Any]
DRAWS = 10_000
#: What a table says of its columns, once for all.
LEGEND = (
    "top-1: mean over seeds ± standard deviation. Differences in points, with the least and the greatest of the seeds "
    "in brackets; p: paired test on the same clips (signs of each clip's difference, averaged over seeds, flipped at "
    f"random {DRAWS:,} times; two-sided)."
)


@dataclass(frozen=True)
class Group:
    """The runs of one method at one compute on one dataset: one a seed."""

    rows: tuple[Row, ...]

    @property
    def seeds(self) -> dict[int, Row]:
        return {row["seed"]: row for row in self.rows}

    @property
    def top1(self) -> float:
        return mean(row["top1"] for row in self.rows)

    @property
    def deviation(self) -> float:
        return stdev(row["top1"] for row in self.rows) if len(self.rows) > 1 else 0.0

    def same_seeds(self, other: Group) -> bool:
        """Tell whether both have the same seeds: seeds differ more than methods, so other means compare nothing."""
        return self.seeds.keys() == other.seeds.keys()

    @property
    def gmacs(self) -> float:
        return float(self.rows[0]["macs"]) / 1e9

    @property
    def shown(self) -> str:
        spread = f" ± {100 * self.deviation:.1f}" if len(self.rows) > 1 else ""
        return f"{100 * self.top1:.1f}{spread}"


def groups(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], Group]:
    """Return the rows by those keys, in the order in which they first occur."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return {key: Group(tuple(sorted(mine, key=lambda row: row["seed"]))) for key, mine in found.items()}


@dataclass(frozen=True)
class Difference:
    """The top-1 of one group minus that of another on the same clips: by seed, and how likely by chance."""

    by_seed: tuple[float, ...]
    p: float

    @property
    def shown(self) -> str:
        points = [100 * value for value in self.by_seed]
        ends = f" ({min(points):+.1f} to {max(points):+.1f})" if len(points) > 1 else ""
        return f"{mean(points):+.1f}{ends}, p {_p(self.p)}"


def difference(one: Group, other: Group) -> Difference | None:
    """Return the paired difference over the seeds that both have; None if there is none."""
    shared = [seed for seed in one.seeds if seed in other.seeds]
    if not shared:
        return None
    delta_SN = np.stack([correct_of(one.seeds[seed]) - correct_of(other.seeds[seed]) for seed in shared])
    delta_N = delta_SN.mean(0)
    delta_N = delta_N[delta_N != 0]
    rng = np.random.default_rng(0)
    # In parts, for the memory: the draws are the same as in one.
    kept = (rng.integers(0, 2, (DRAWS // 10, len(delta_N))).astype(float) for _ in range(10))
    flipped = 2 * np.concatenate([part @ delta_N for part in kept]) - delta_N.sum()
    as_far = int((np.abs(flipped) >= abs(delta_N.sum()) - 1e-9).sum())
    return Difference(tuple(delta_SN.mean(1)), (as_far + 1) / (DRAWS + 1))


def correct_of(row: Row) -> np.ndarray:
    """Return which test clips a run got right, as 0 and 1: [N]."""
    with np.load(row["answers"]) as answers:
        return answers["correct"].astype(float)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def origin(rows: Sequence[Row], command: str) -> str:
    """Return where the figures come from: the command, machines, commits."""
    machines = sorted({row["machine"] for row in rows})
    commits = sorted({row["commit"] for row in rows})
    return f"Written by `{command}`. Machine: {'; '.join(machines)}. Commits: {', '.join(commits)}."


def show_in_docs(table: Path) -> None:
    """Put results/<study>/table.md between its marks on every page of docs/ that has them."""
    start, end = f"<!-- results/{table.parent.name}/{table.name} -->\n", "<!-- end -->"
    for page in (table.parents[2] / "docs").glob("*.md"):
        before, found, marked = page.read_text(encoding="utf-8").partition(start)
        if found:
            rest = marked[marked.index(end) :]
            page.write_text(f"{before}{start}\n{table.read_text(encoding='utf-8')}\n{rest}", encoding="utf-8")


def _deltas(group: Group, plain: Group) -> list[float]:
    """Return the delta vs plain of each seed that both have."""
    return [row["top1"] - plain.seeds[seed]["top1"] for seed, row in group.seeds.items() if seed in plain.seeds]


# Drawing is one sequence of calls to matplotlib: splitting it would only hand the axes around.
def plot(path: Path, rows: Sequence[Row], name: str = "method") -> None:
    """Plot top-1 over multiply-adds, a panel for each dataset, a line with a band for each method.

    Seeds differ far more than methods do: a point is plain's mean plus the mean delta vs plain over the seeds that both
    have, the band one standard deviation of that delta. A dataset that plain has no run on has no panel.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows if row["method"] == "plain"))
    if not datasets:
        return
    figure, axes = _panels(len(datasets))
    names = list(dict.fromkeys(row[name] for row in rows if row["method"] != "plain"))
    for axis, dataset in zip(axes[0], datasets, strict=True):
        mine = [row for row in rows if row["dataset"] == dataset]
        plain = Group(tuple(row for row in mine if row["method"] == "plain"))
        for number, label in enumerate(names):
            points = groups([row for row in mine if row[name] == label], "compute").values()
            ordered = sorted((group for group in points if _deltas(group, plain)), key=lambda group: group.gmacs)
            if not ordered:
                continue
            x, deltas = [g.gmacs for g in ordered], [_deltas(g, plain) for g in ordered]
            y = np.array([100 * (plain.top1 + mean(found)) for found in deltas])
            band = np.array([100 * stdev(found) if len(found) > 1 else 0.0 for found in deltas])
            colour = "black" if label == "sttm" else f"C{number % 10}"
            wide = 2.5 if label == "sttm" else 1.2
            style = "-" if number < 10 else "--"
            axis.plot(x, y, style, color=colour, linewidth=wide, marker="o", markersize=3 + wide, label=label)
            axis.fill_between(x, y - band, y + band, color=colour, alpha=0.12, linewidth=0)
        if plain.rows:
            axis.axhline(100 * plain.top1, color="grey", linestyle=":", linewidth=1)
            axis.plot([plain.gmacs], [100 * plain.top1], "s", color="grey", label="plain")
        axis.set(title=dataset, xlabel="multiply-adds of a clip (G)", ylabel="top-1 (%)")
    _finish(path, figure, axes)


def plot_curves(path: Path, rows: Sequence[Row]) -> None:
    """Plot validation top-1 over epochs, a panel for each dataset, a line for each method at each compute."""
    by_dataset = groups([row for row in rows if row.get("curve")], "dataset")
    if not by_dataset:
        return
    (figure, axes), numbers = _panels(len(by_dataset)), dict[str, int]()
    for axis, ((dataset,), mine) in zip(axes[0], by_dataset.items(), strict=True):
        lines = groups(mine.rows, "method", "variant", "compute", "optimizer", "epochs")
        for (method, variant, compute, optimizer, _), group in lines.items():
            curve = np.mean([row["curve"] for row in group.rows], axis=0)
            label = " ".join(part for part in (method, variant, f"{compute:g}", optimizer) if part)
            number = numbers.setdefault(label, len(numbers))
            look: dict[str, Any] = dict(color=f"C{number % 10}", linestyle=("-", "--", ":")[number // 10 % 3])
            axis.plot(np.arange(1, len(curve) + 1), 100 * curve, label=label, **look)
        axis.set(title=dataset, xlabel="epoch", ylabel="validation top-1 (%)")
    _finish(path, figure, axes)


def plot_training(path: Path, rows: Sequence[Row]) -> None:
    """Plot test top-1 over the multiply-adds of the whole training, a point for each length of training."""
    from matplotlib.ticker import LogLocator, NullLocator

    by_dataset = groups(rows, "dataset", "optimizer")
    if not by_dataset:
        return
    (figure, axes), colours = _panels(len(by_dataset)), {}
    for axis, ((dataset, optimizer), mine) in zip(axes[0], by_dataset.items(), strict=True):
        for (method, variant, compute), line in groups(mine.rows, "method", "variant", "compute").items():
            lengths = sorted(groups(line.rows, "epochs").values(), key=lambda group: training_macs(group.rows[0]))
            x = [training_macs(group.rows[0]) / 1e12 for group in lengths]
            y = [100 * group.top1 for group in lengths]
            label, width = " ".join(filter(None, (method, variant, f"{compute:g}"))), 2.5 if method == "sttm" else 1.2
            colour = colours.setdefault(label, f"C{len(colours) % 10}")
            axis.plot(x, y, marker="o", color=colour, label=label, linewidth=width)
        title = f"{dataset}, {optimizer}"
        axis.set(title=title, xscale="log", xlabel="multiply-adds of the training (T)", ylabel="top-1 (%)")
        axis.xaxis.set_major_locator(LogLocator(2))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    _finish(path, figure, axes)


def training_macs(row: Row) -> int:
    """Return the multiply-adds of a training: forwards and backwards, counted as three forwards."""
    return int(3 * row["macs"] * row["steps"] * row["batch"])


def _panels(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, count, figsize=(6 * count, 4.5), squeeze=False)


def _finish(path: Path, figure: Any, axes: Any) -> None:
    """Add grids and one legend for all panels, save the figure and close it."""
    from matplotlib import pyplot

    entries: dict[str, Any] = {}
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        axes[0][-1].legend(
            entries.values(), entries.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False
        )
    figure.savefig(path, dpi=140, bbox_inches="tight")
    pyplot.close(figure)
