"""Off the shelf: methods plugged into the plain models that the study `trained` starts from, and nothing trained after.

How to run, from the project's root:
    python studies/offshelf.py run
"""

from __future__ import annotations

import arena
from runs import Entry, Row, Run, main, path_of, rows_of
from tables import LEGEND, difference, groups, markdown, origin, plot

METHODS = ("sttm", "random", "pool", "tome", "frames", "evit", "sta", "dpcknn")
COMPUTES = (0.9, 0.8, 0.7, 0.62, 0.5, 0.4)
ENTRIES = [Entry(), *(Entry(method, compute) for compute in COMPUTES for method in METHODS)]


def tested(run: Run) -> Row:
    """Plugs the entry into the plain model as it was trained, and tests it."""
    model = run.model(learned=False)
    right = arena.answers(model, run.dataset, run.split, run.scale, run.entry.frames)
    return run.row(model, right, steps=0, seconds=0.0)


def report(scale: str, split: str) -> None:
    """results/offshelf.md and offshelf.png."""
    rows = rows_of("offshelf", scale, split)
    sections = [
        "Plugged into the plain models that the runs of studies/trained.py start from, and nothing trained after. "
        "An entry is left empty until it has all seeds.",
        LEGEND,
        origin(rows, "python studies/offshelf.py run"),
    ]
    for (dataset,), of_set in groups(rows, "dataset").items():
        found = groups(of_set.rows, "method", "compute")
        plain = found["plain", 1.0]
        found = {entry: group for entry, group in found.items() if group.is_beside(plain)}
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
            less = group and difference(group, plain)
            ours = group and sttm and method != "sttm" and difference(sttm, group)
            if less:
                lines.append((method, less.shown, ours.shown if ours else ""))
        sections += ["At compute 0.62:", markdown(("method", "less plain", "STTM less it"), lines)]
    path_of("offshelf", scale, split, "md").write_text("\n\n".join(sections) + "\n")
    plot(path_of("offshelf", scale, split, "png"), rows)


if __name__ == "__main__":
    main("offshelf", __doc__, ENTRIES, tested, report)
