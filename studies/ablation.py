"""Ablation: the learned merger with one thing changed at a time, all tuned alike.

All changes at compute 0.5; the motion features also where tokens are more, and fewer.

How to run, from the project's root (what is done is not done again):
    python studies/ablation.py run
"""

from __future__ import annotations

from harness.runs import folder_of, main, rows_of, tuned
from harness.tables import LEGEND, difference, groups, markdown, origin
from harness.variants import ARGUMENTS, MERGERS

EVERYWHERE = ("no-motion", "no-path-confidence")
ENTRIES = [
    dict(method="sttm", compute=compute, variant=variant) for variant in EVERYWHERE for compute in (0.5, 0.62, 0.35)
]
ENTRIES += [
    dict(method="sttm", compute=0.5, variant=variant) for variant in (*MERGERS, *ARGUMENTS) if variant not in EVERYWHERE
]
#: What each variant changes, for readers.
TOLD = {
    "": "the merger as it is: novelty, hard; at 0.5 before blocks 1 and 2, first window of two frames",
    "no-motion": "slots are averages, as off the shelf, tuned",
    "no-path-confidence": "all points of a path count alike, however many things look like the object",
    "selection-only": "slots are their meta tokens and their motion; all other tokens are dropped",
    "soft": "each token spreads itself over the objects (softmax of cosines over 0.1)",
    "residual": "slots start as their meta tokens; a map that starts at zero adds what was fused",
    "saliency": "meta tokens by a learned score",
    "no-size-weights": "sizes count neither in attention nor in pooling",
    "space-only": "windows of one frame: fusion in space only",
    "time-only": "slots are the tokens of the first of two frames, before block 0: fusion over time, nearly only",
    "clip-window": "one window",
    "blocks-1-2": "both mergers one block later",
    "block-0": "one merger",
    "block-1": "one merger",
    "blocks-1-2-3": "three mergers",
    "stride": "meta tokens on a regular stride",
    "coverage": "half on a stride, half where these represent the window worst",
    "random-selector": "meta tokens at random in training, on a stride in evaluation",
}


def report(scale: str, split: str) -> None:
    """Write results/ablation/table.md."""
    rows = rows_of("ablation", scale, split)
    changed = {(row["dataset"], row["compute"]) for row in rows}
    rows += [
        row for row in rows_of("tune", scale, split)
        if row["method"] == "sttm" and (row["dataset"], row["compute"]) in changed
    ]  # fmt: skip
    sections = ["The learned merger, one thing changed at a time.", LEGEND,
                origin(rows, "python studies/ablation.py run")]  # fmt: skip
    for (dataset, compute), at_compute in groups(rows, "dataset", "compute").items():
        found = groups(at_compute.rows, "variant")
        lines = []
        for (variant,), group in sorted(found.items(), key=lambda entry: (entry[0][0] != "", -entry[1].top1)):
            delta = difference(group, found[("",)]) if variant and ("",) in found else None
            lines.append((variant or "**sttm**", TOLD[variant], str(len(group.rows)), group.shown,
                          delta.shown if delta else ""))  # fmt: skip
        heads = ("variant", "what it is", "seeds", "top-1 (%)", "delta vs sttm")
        sections += [f"### {dataset}, compute {compute:g}", markdown(heads, lines)]
    table = folder_of("ablation", scale, split) / "table.md"
    table.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("ablation", __doc__, ENTRIES, tuned, report)
