"""Equal compute: plain on 4 frames against methods on the 8 frames that the saved multiply-adds pay for.

The frames span the same time. Plain on 4 was trained and tuned on 4, step for step as plain on 8 was on 8. What plain
does with all 8, at its price, stands beside: those are the rows of the study `tune`.

How to run, from the project's root, after `python studies/tune.py run --methods plain`:
    python studies/equal.py run
"""

from __future__ import annotations

from dataclasses import replace

from harness.pretraining import SCALES
from harness.runs import Row, folder_of, main, rows_of, tuned
from harness.tables import LEGEND, difference, groups, markdown, origin
from harness.training import new_model

import sttm

FEW = 4


def share(scale: str = "small") -> float:
    """Return the multiply-adds of plain on FEW frames over those on 8."""
    few, many = (sttm.macs(new_model(replace(SCALES[scale].shape, frames=frames), 16)) for frames in (FEW, 8))
    return round(few / many, 4)


ENTRIES = [
    dict(frames=FEW),
    *(dict(method=method, compute=share()) for method in ("sttm", "random", "pool", "tome", "dpcknn")),
]


def report(scale: str, split: str) -> None:
    """Write results/equal/table.md."""
    rows: list[Row] = rows_of("equal", scale, split)
    rows += [row for row in rows_of("tune", scale, split) if row["method"] == "plain"]
    sections = [f"Plain on {FEW} frames against 8 frames at the same multiply-adds.", LEGEND,
                origin(rows, "python studies/equal.py run")]  # fmt: skip
    for (dataset,), of_set in groups(rows, "dataset").items():
        found = groups(of_set.rows, "method", "frames")
        plain = found.get(("plain", FEW))
        if plain is None:
            continue
        lines = []
        for (method, frames), group in sorted(found.items(), key=lambda entry: -entry[1].top1):
            delta = difference(group, plain) if group is not plain else None
            name = f"**{method}**" if method == "sttm" else method
            lines.append((name, str(frames), f"{group.gmacs:.4f}", group.shown, delta.shown if delta else ""))
        heads = ("method", "frames", "GMACs", "top-1 (%)", f"delta vs plain on {FEW} frames")
        sections += [f"### {dataset}", markdown(heads, lines)]
    table = folder_of("equal", scale, split) / "table.md"
    table.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("equal", __doc__, ENTRIES, tuned, report)
