"""Tune: plain, STTM and every baseline at equal multiply-adds, put into the same trained models and tuned alike.

How to run, from the project's root (what is done is not done again):
    python studies/tune.py run
"""

from __future__ import annotations

from harness.runs import folder_of, main, rows_of, tuned
from harness.tables import LEGEND, Group, Row, difference, groups, markdown, origin, plot

HALF = ("sttm", "random", "pool", "tome", "frames", "patchmerger", "tokenlearner", "evit", "sta", "dpcknn")
ALL = ("sttm", "random", "pool", "tome", "dpcknn", "sta")  # the last two are the best of the others at 0.5
ENTRIES = [
    {},
    *(dict(method=method, compute=0.5) for method in HALF),
    *(dict(method=method, compute=compute) for compute in (0.62, 0.35) for method in ALL),
]
SHORT = ("dataset", "compute", "plain", "STTM", "delta vs plain", "best baseline", "STTM vs baseline", "error ratio")
HEADS = ("method", "GMACs", "seeds", "top-1 (%)", "delta vs plain", "STTM vs method", "error ratio")


def report(scale: str, split: str) -> None:
    """Write results/tune/table.md and plot.png."""
    rows = rows_of("tune", scale, split)
    sections = [
        "Plain, STTM and its baselines at equal multiply-adds: put into the same plain models and tuned alike. "
        "Error ratio: the errors of STTM over those of the method in the row.",
        LEGEND,
        origin(rows, "python studies/tune.py run"),
    ]
    sections += ["### In short", markdown(SHORT, _in_short(rows))]
    for (dataset,), of_set in groups(rows, "dataset").items():
        plain = groups(of_set.rows, "method").get(("plain",))
        for (compute,), at_compute in groups(of_set.rows, "compute").items():
            if compute == 1.0:
                continue
            sections += [f"### {dataset}, compute {compute:g}", _table(at_compute.rows, plain)]
    folder = folder_of("tune", scale, split)
    (folder / "table.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    plot(folder / "plot.png", rows)


def _in_short(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return STTM beside plain and beside the best of its baselines, on each dataset at each compute."""
    found, lines = groups(rows, "dataset", "compute", "method"), []
    for (dataset, compute, method), ours in sorted(found.items(), key=lambda entry: (entry[0][0], -entry[0][1])):
        plain = found.get((dataset, 1.0, "plain"))
        if method != "sttm" or plain is None:
            continue
        baselines = {m: group for (d, c, m), group in found.items() if (d, c) == (dataset, compute) and m != "sttm"}
        best = max(baselines, key=lambda name: baselines[name].top1)
        to_plain, to_best = difference(ours, plain), difference(ours, baselines[best])
        lines.append((dataset, f"{compute:g}", plain.shown, ours.shown, to_plain.shown if to_plain else "",
                      f"{best} {baselines[best].shown}", to_best.shown if to_best else "",
                      f"{(1 - ours.top1) / (1 - baselines[best].top1):.2f}"))  # fmt: skip
    return lines


def _table(rows: tuple[Row, ...], plain: Group | None) -> str:
    found = {method: group for (method,), group in groups(rows, "method").items()}
    ours = found.get("sttm")
    lines = [_line("plain", plain, None, None)] if plain else []
    lines += [_line(method, group, plain, ours if method != "sttm" else None) for method, group in
              sorted(found.items(), key=lambda entry: -entry[1].top1)]  # fmt: skip
    return markdown(HEADS, lines)


def _line(name: str, group: Group, plain: Group | None, ours: Group | None) -> tuple[str, ...]:
    to_plain, to_ours = plain and difference(group, plain), ours and difference(ours, group)
    ratio = f"{(1 - ours.top1) / (1 - group.top1):.2f}" if ours and group.top1 < 1 else ""
    bold = f"**{name}**" if name == "sttm" else name
    return (bold, f"{group.gmacs:.4f}", str(len(group.rows)), group.shown, to_plain.shown if to_plain else "",
            to_ours.shown if to_ours else "", ratio)  # fmt: skip


if __name__ == "__main__":
    main("tune", __doc__, ENTRIES, tuned, report)
