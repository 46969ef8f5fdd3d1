"""Off the shelf: nothing is trained after plugging in, on the plain models of the study `trained`.

How to run, from the project's root, after `python studies/trained.py run --methods plain`:
    python studies/offshelf.py run
"""

from __future__ import annotations

import arena
import torch
from runs import Entry, Row, Run, main, path_of, plain_weights, rows_of
from tables import LEGEND, difference, groups, markdown, origin, plot
from variants import put_in

METHODS = ("sttm", "random", "pool", "tome", "frames", "evit", "sta", "dpcknn")
COMPUTES = (0.9, 0.8, 0.7, 0.62, 0.5, 0.4)
ENTRIES = [Entry(), *(Entry(method, compute) for compute in COMPUTES for method in METHODS)]


def tested(run: Run) -> Row:
    """Plugs the entry into the plain model as it was trained, and tests it."""
    weights = plain_weights(run.dataset, run.seed, run.scale)
    model = arena.backbone(run.seed, run.dataset, run.scale, run.entry.frames)
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    put_in(model, run.entry.method, run.entry.compute, run.entry.variant, learned=False)
    right = arena.answers(model, run.dataset, run.split, run.scale, run.entry.frames)
    return run.row(model, right, steps=0, seconds=0.0)


def report(scale: str, split: str) -> None:
    """results/offshelf.md and offshelf.png."""
    rows = rows_of("offshelf", scale, split)
    sections = [
        "Plugged into the plain models of results/trained.md with nothing trained after it.",
        LEGEND,
        origin(rows, "python studies/offshelf.py run"),
    ]
    for (dataset,), of_set in groups(rows, "dataset").items():
        found = groups(of_set.rows, "method", "compute")
        plain = found["plain", 1.0]
        heads = ("top-1 (%)", *(f"{compute:g}" for compute in COMPUTES))
        lines = [
            (f"**{method}**" if method == "sttm" else method,
             *(found[method, c].shown if (method, c) in found else "" for c in COMPUTES))
            for method in METHODS
        ]  # fmt: skip
        sections += [f"### {dataset}: plain {plain.shown}, {len(plain.rows)} seeds", markdown(heads, lines)]
        lines = []
        for method in METHODS:
            group = found.get((method, 0.62))
            less = group and difference(group, plain)
            ours = group and difference(found["sttm", 0.62], group)
            if group and less and ours:
                lines.append((method, less.shown, ours.shown if method != "sttm" else ""))
        sections += ["At compute 0.62:", markdown(("method", "less plain", "STTM less it"), lines)]
    path_of("offshelf", scale, split, "md").write_text("\n\n".join(sections) + "\n")
    plot(path_of("offshelf", scale, split, "png"), rows)


if __name__ == "__main__":
    main("offshelf", __doc__, ENTRIES, tested, report)
