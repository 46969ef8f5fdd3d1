"""Equal computation: plain on 8 frames against methods on the 16 frames that the saved multiply-adds pay for.

All see the same clips of 16 frames; plain on 8 takes every second. What plain does with all 16, at its price, stands
beside. The plain rows on 8 frames are those of the study `trained`.

How to run, from the project's root, after `python studies/trained.py run --methods plain`:
    python studies/equal.py run
"""

from __future__ import annotations

import arena
from runs import Entry, Row, main, path_of, rows_of, trained
from tables import LEGEND, difference, groups, markdown, origin

import sttm


def share(scale: str = "small") -> float:
    """Multiply-adds of plain on 8 frames over those on 16."""
    few, many = (sttm.macs(arena.new_model(scale, 16, frames)) for frames in (8, 16))
    return round(few / many, 4)


ENTRIES = [*(Entry(method, share(), frames=16) for method in ("sttm", "random", "tome", "pool")), Entry(frames=16)]


def report(scale: str, split: str) -> None:
    """results/equal.md."""
    rows: list[Row] = [row for row in rows_of("trained", scale, split) if row["method"] == "plain"]
    rows += rows_of("equal", scale, split)
    sections = ["Plain on 8 frames against 16 frames at the same multiply-adds.", LEGEND,
                origin(rows, "python studies/equal.py run")]  # fmt: skip
    for (dataset,), of_set in groups(rows, "dataset").items():
        found = groups(of_set.rows, "method", "frames")
        plain = found["plain", 8]
        lines = []
        for (method, frames), group in found.items():
            less = difference(group, plain)
            shown = less.shown if less and group is not plain else ""
            lines.append((method, str(frames), f"{group.gmacs:.4f}", group.shown, shown))
        heads = ("method", "frames", "GMACs", "top-1 (%)", "less plain on 8 frames")
        sections += [f"### {dataset}", markdown(heads, lines)]
    path_of("equal", scale, split, "md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main("equal", __doc__, ENTRIES, trained, report)
