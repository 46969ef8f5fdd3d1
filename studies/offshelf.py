"""Off the shelf: methods put into the plain models that the study `tune` starts from, with no training after.

How to run, from the project's root:
    python studies/offshelf.py run
"""

from __future__ import annotations

from harness.runs import Row, Run, folder_of, main, rows_of, tested
from harness.tables import LEGEND, difference, groups, markdown, origin, plot

METHODS = ("sttm", "random", "pool", "tome", "frames", "evit", "sta", "dpcknn")
COMPUTES = (0.9, 0.8, 0.7, 0.62, 0.5, 0.4)
ENTRIES = [dict(optimizer=""), *(dict(method=m, compute=c, optimizer="") for c in COMPUTES for m in METHODS)]


def work(run: Run) -> Row:
    """Put the method into the plain model as it was trained, and test it."""
    return tested(run, run.model(learned=False))


def report(scale: str, split: str) -> None:
    """Write results/offshelf/table.md and plot.png."""
    rows = rows_of("offshelf", scale, split)
    sections = [
        "Put into the plain models that the runs of studies/tune.py start from, with no training after. "
        "A cell is left empty until it has all seeds.",
        LEGEND,
        origin(rows, "python studies/offshelf.py run"),
    ]
    for (dataset,), of_set in groups(rows, "dataset").items():
        found = groups(of_set.rows, "method", "compute")
        plain = found["plain", 1.0]
        found = {entry: group for entry, group in found.items() if group.same_seeds(plain)}
        heads = ("top-1 (%)", *(f"{compute:g}" for compute in COMPUTES))
        lines = [
            (f"**{method}**" if method == "sttm" else method,
             *(found[method, c].shown if (method, c) in found else "" for c in COMPUTES))
            for method in METHODS
        ]  # fmt: skip
        sections += [f"### {dataset}: plain {plain.shown}, {len(plain.rows)} seeds", markdown(heads, lines)]
        lines, sttm = [], found.get(("sttm", 0.62))
        for method in METHODS:
            group = found.get((method, 0.62))
            delta = group and difference(group, plain)
            ours = group and sttm and method != "sttm" and difference(sttm, group)
            if delta:
                lines.append((method, delta.shown, ours.shown if ours else ""))
        heads = ("method", "delta vs plain", "STTM vs method")
        sections += ["At compute 0.62:", markdown(heads, lines)]
    folder = folder_of("offshelf", scale, split)
    (folder / "table.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    plot(folder / "plot.png", rows)


if __name__ == "__main__":
    main("offshelf", __doc__, ENTRIES, work, report)
