"""What a study says of its runs: means and spread over seeds, paired tests, tables in markdown, and plots.

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
    """The runs of one entry on one data set: one a seed."""

    rows: tuple[Row, ...]

    @property
    def seeds(self) -> dict[int, Row]:
        return {row["seed"]: row for row in self.rows}

    @property
    def top1(self) -> float:
        return mean(row["top1"] for row in self.rows)

    @property
    def spread(self) -> float:
        return stdev(row["top1"] for row in self.rows) if len(self.rows) > 1 else 0.0

    def is_beside(self, other: Group) -> bool:
        """Whether it has the same seeds: means over others compare nothing, as seeds differ more than methods."""
        return self.seeds.keys() == other.seeds.keys()

    @property
    def gmacs(self) -> float:
        return float(self.rows[0]["macs"]) / 1e9

    @property
    def shown(self) -> str:
        return f"{100 * self.top1:.1f} ± {100 * self.spread:.1f}"


def groups(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], Group]:
    """Rows by those keys, in the order in which they first occur."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return {key: Group(tuple(sorted(mine, key=lambda row: row["seed"]))) for key, mine in found.items()}


@dataclass(frozen=True)
class Difference:
    """One entry less another, on the same clips and seeds: in points, by seed, and how likely by chance."""

    by_seed: tuple[float, ...]
    p: float

    @property
    def shown(self) -> str:
        points = [100 * value for value in self.by_seed]
        return f"{mean(points):+.1f} ({min(points):+.1f} to {max(points):+.1f}), p {_p(self.p)}"


def difference(one: Group, other: Group) -> Difference | None:
    """Paired over the seeds that both have; None if there is none."""
    shared = [seed for seed in one.seeds if seed in other.seeds]
    if not shared:
        return None
    apart_SN = np.stack([_right(one.seeds[seed]) - _right(other.seeds[seed]) for seed in shared])
    apart_N = apart_SN.mean(0)
    apart_N = apart_N[apart_N != 0]
    rng = np.random.default_rng(0)
    flipped = np.array([(rng.integers(0, 2, len(apart_N)) * 2 - 1) @ apart_N for _ in range(DRAWS)])
    as_far = int((np.abs(flipped) >= abs(apart_N.sum()) - 1e-9).sum())
    return Difference(tuple(apart_SN.mean(1)), (as_far + 1) / (DRAWS + 1))


def _right(row: Row) -> np.ndarray:
    bits = np.frombuffer(bytes.fromhex(row["right"]), np.uint8)
    return np.unpackbits(bits)[: row["clips"]].astype(float)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def origin(rows: Sequence[Row], command: str) -> str:
    """Where the figures come from: the command, machines, commits."""
    machines = sorted({row["machine"] for row in rows})
    commits = sorted({row["commit"] for row in rows})
    return f"Written by `{command}`. Machine: {'; '.join(machines)}. Commits: {', '.join(commits)}."


def show_in_docs(table: Path) -> None:
    """Puts a table of results/ between its marks on the page docs/evidence.md."""
    page = table.parents[1] / "docs" / "evidence.md"
    start, end = f"<!-- results/{table.name} -->\n", "<!-- end -->"
    before, marked = page.read_text(encoding="utf-8").split(start)
    rest = marked[marked.index(end) :]
    page.write_text(f"{before}{start}\n{table.read_text(encoding='utf-8')}\n{rest}", encoding="utf-8")


def _spread_beside(group: Group, plain: Group) -> float:
    """Standard deviation over seeds of what an entry has less than plain."""
    less = [row["top1"] - plain.seeds[seed]["top1"] for seed, row in group.seeds.items() if seed in plain.seeds]
    return stdev(less) if len(less) > 1 else 0.0


def plot(path: Path, rows: Sequence[Row], name: str = "method") -> None:
    """Accuracy over multiply-adds, a panel for each data set, a line with a band for each method.

    The band is one standard deviation, over seeds, of the difference to plain: seeds differ far more than methods do.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    figure, axes = pyplot.subplots(1, len(datasets), figsize=(6 * len(datasets), 4.5), squeeze=False)
    names = list(dict.fromkeys(row[name] for row in rows if row["method"] != "plain"))
    for axis, dataset in zip(axes[0], datasets, strict=True):
        mine = [row for row in rows if row["dataset"] == dataset]
        plain = Group(tuple(row for row in mine if row["method"] == "plain"))
        for number, label in enumerate(names):
            points = groups([row for row in mine if row[name] == label], "compute").values()
            ordered = sorted((group for group in points if group.is_beside(plain)), key=lambda group: group.gmacs)
            if not ordered:
                continue
            x, y = [g.gmacs for g in ordered], np.array([100 * g.top1 for g in ordered])
            band = np.array([100 * _spread_beside(g, plain) for g in ordered])
            colour = "black" if label == "sttm" else f"C{number % 10}"
            wide = 2.5 if label == "sttm" else 1.2
            style = "-" if number < 10 else "--"
            axis.plot(x, y, style, color=colour, linewidth=wide, marker="o", markersize=3 + wide, label=label)
            axis.fill_between(x, y - band, y + band, color=colour, alpha=0.12, linewidth=0)
        if plain.rows:
            axis.axhline(100 * plain.top1, color="grey", linestyle=":", linewidth=1)
            axis.plot([plain.gmacs], [100 * plain.top1], "s", color="grey", label="plain")
        axis.set(title=dataset, xlabel="multiply-adds of a clip (G)", ylabel="top-1 (%)")
        axis.grid(alpha=0.25)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=140, bbox_inches="tight")
    pyplot.close(figure)
