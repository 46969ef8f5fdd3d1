"""Equal computation: plain on few frames against methods on the more frames that the saved multiply-adds pay for.

The frames span the same time, 4 against 8 and 8 against 16. Plain was trained and tuned on each number of frames, step
for step alike. What plain does with all of the more frames, at their price, stands beside. Plain on 8 frames are rows
of the study `trained`.

How to run, from the project's root, after `python studies/trained.py run --methods plain`:
    python studies/equal.py run
"""

from __future__ import annotations

import arena
from runs import Entry, Row, main, path_of, rows_of, trained
from tables import LEGEND, Group, difference, groups, markdown, origin

import sttm

#: Few frames and the more that are paid for, and who takes part.
PAIRS = {(4, 8): ("sttm", "random", "pool", "tome", "dpcknn"), (8, 16): ("sttm", "random", "tome")}


def share(few: int, many: int, scale: str = "small") -> float:
    """Multiply-adds of plain on few frames over those on many."""
    cheap, dear = (sttm.macs(arena.new_model(scale, 16, frames)) for frames in (few, many))
    return round(cheap / dear, 4)


ENTRIES = [
    *(Entry(frames=frames) for frames in (4, 16)),
    *(Entry(method, share(*pair), frames=pair[1]) for pair, methods in PAIRS.items() for method in methods),
]


def report(scale: str, split: str) -> None:
    """results/equal.md."""
    rows: list[Row] = rows_of("equal", scale, split)
    rows += [row for row in rows_of("trained", scale, split) if row["method"] == "plain"]
    sections = ["Plain on few frames against more frames at the same multiply-adds.", LEGEND,
                origin(rows, "python studies/equal.py run")]  # fmt: skip
    for (dataset,), of_set in groups(rows, "dataset").items():
        for few, many in PAIRS:
            lines = _against(groups(of_set.rows, "method", "frames"), few, many)
            if lines:
                heads = ("method", "frames", "GMACs", "top-1 (%)", f"less plain on {few} frames")
                sections += [f"### {dataset}, {few} frames against {many}", markdown(heads, lines)]
    path_of("equal", scale, split, "md").write_text("\n\n".join(sections) + "\n")


def _against(found: dict[tuple[str, int], Group], few: int, many: int) -> list[tuple[str, ...]]:
    """Plain on few frames, and all that has its seeds on many; the best first."""
    plain, lines = found.get(("plain", few)), []
    for (method, frames), group in sorted(found.items(), key=lambda entry: -entry[1].top1):
        if plain is None or not group.is_beside(plain) or (group is not plain and frames != many):
            continue
        less = difference(group, plain) if group is not plain else None
        name = f"**{method}**" if method == "sttm" else method
        lines.append((name, str(frames), f"{group.gmacs:.4f}", group.shown, less.shown if less else ""))
    return lines if len(lines) > 1 else []


if __name__ == "__main__":
    main("equal", __doc__, ENTRIES, trained, report)
