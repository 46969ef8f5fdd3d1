"""The table of the list, for docs/ecosystem.md: what is tested of which families, and what does not hold."""

from __future__ import annotations

from tests.ecosystem import in_process, training  # noqa: F401  (their functions register as uses)
from tests.ecosystem.registry import ALIKE, EXCEPTIONS, SUBJECTS, USES
from tests.helpers import ALL, ROOT

PAGE = ROOT / "docs" / "ecosystem.md"
BEGIN, END = "<!-- python -m tests.ecosystem -->\n", "<!-- end -->"


def written() -> str:
    """Return the table as the registry has it."""
    rows = ["| what people do | what is tested | holds for | but |", "|---|---|---|---|"]
    for one in USES:
        # Several models for one reason: the reason once, behind their names.
        reasons: dict[str, list[str]] = {}
        for (name, subject), reason in EXCEPTIONS.items():
            if name == one.name:
                reasons.setdefault(reason, []).append(subject)
        but = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        count = len(one.subjects) - sum(map(len, reasons.values()))
        rows.append(f"| {one.title} | {one.holds} | {count} of {len(one.subjects)} | {but} |")
    others = [subject.name for subject in SUBJECTS if subject.name not in ALL]
    note = (
        f"The {len(SUBJECTS)} models: the learned merger in {', '.join(ALL)}; off the shelf, or a method that merges "
        f"inside a block, in {', '.join(others)}. What takes long leaves out those that differ from another of their "
        f"family in nothing that matters there: {', '.join(sorted(ALIKE))}."
    )
    return "\n".join(["", *rows, "", note, ""])


def on_the_page() -> str:
    """Return the table that the page shows."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert mark and end, f"{PAGE} has no place for the table"
    PAGE.write_text(before + mark + written() + end + after, encoding="utf-8")
