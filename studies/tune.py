"""Trained: plain, STTM and every baseline at equal multiply-adds, from the same models, by the same recipe and steps.

How to run, from the project's root (what is done is not done again):
    python studies/trained.py run
"""

from __future__ import annotations

from runs import Entry, main, path_of, rows_of, trained
from tables import LEGEND, Group, Row, difference, groups, markdown, origin, plot

HALF = ("sttm", "random", "pool", "tome", "frames", "patchmerger", "tokenlearner", "evit", "sta", "dpcknn")
ALL = ("sttm", "random", "pool", "tome", "dpcknn", "sta")  # the last two are the best of the others at 0.5
ENTRIES = [
    Entry(),
    *(Entry(method, 0.5) for method in HALF),
    *(Entry(method, compute) for compute in (0.62, 0.35) for method in ALL),
]
SHORT = ("data set", "compute", "plain", "STTM", "STTM less plain", "best baseline", "STTM less it", "errors over its")
HEADS = ("method", "GMACs", "seeds", "top-1 (%)", "less plain", "STTM less it", "STTM's errors over its")


def report(scale: str, split: str) -> None:
    """results/trained.md and trained.png."""
    rows = rows_of("trained", scale, split)
    sections = [
        "Plain, STTM and its baselines at equal multiply-adds: put into the same plain models and tuned alike.",
        LEGEND,
        origin(rows, "python studies/trained.py run"),
    ]
    sections += ["### In short", markdown(SHORT, _in_short(rows))]
    for (dataset,), of_set in groups(rows, "dataset").items():
        plain = groups(of_set.rows, "method").get(("plain",))
        for (compute,), at_compute in groups(of_set.rows, "compute").items():
            if compute == 1.0:
                continue
            sections += [f"### {dataset}, compute {compute:g}", _table(at_compute.rows, plain)]
    path_of("trained", scale, split, "md").write_text("\n\n".join(sections) + "\n")
    plot(path_of("trained", scale, split, "png"), rows)


def _in_short(rows: list[Row]) -> list[tuple[str, ...]]:
    """STTM beside plain and beside the best of its baselines, on each data set at each compute."""
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
    main("trained", __doc__, ENTRIES, trained, report)
