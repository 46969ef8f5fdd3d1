"""Write the tables of docs/performance.md from what `sttm bench --json` measured.

How to run, from the project's root (the page has the commands that measure):
    python studies/performance.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from harness.runs import RESULTS
from harness.tables import Row, markdown, show_in_docs

FOLDER = RESULTS / "performance"
#: The tables, and the file of results/ that each is made of.
TABLES = {"models.md": "speed.json", "batches.md": "speed-small.json", "engines.md": "speed-engines.json"}
HEADS = ("engine, dtype", "compute", "GMACs", "ms a clip (p90)", "clips/s", "speed-up", "by multiply-adds alone",
         "over eager in fp32")  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in TABLES:
        table = FOLDER / name
        table.write_text(table_of(name), encoding="utf-8")
        show_in_docs(table)


def table_of(name: str) -> str:
    """Return a table: a section for each model and batch, a row for each measurement."""
    source = RESULTS / TABLES[name]
    measured = json.loads(source.read_text(encoding="utf-8"))
    parts = [f"`results/{source.name}`, {measured['machine']}."]
    for (model, batch), group in groups(measured["rows"], "model", "batch").items():
        heads = HEADS if "over_eager" in group[0] else HEADS[:-1]
        title = f"### {model}, {batch} clip{'s' * (batch > 1)} at a time"
        parts += [title, markdown(heads, [_line(row)[: len(heads)] for row in group])]
    return "\n\n".join(parts) + "\n"


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows by those keys, in the order in which they first occur."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return found


def _line(row: Row) -> tuple[str, ...]:
    saved = ", as saved" if "as saved" in row["method"] else ""
    gmacs, rate = row["macs"] / 1e9, row["clips_per_s"]
    p50, p90 = (row["latency_ms"][name] / row["batch"] for name in ("p50", "p90"))
    digits = 0 if p50 >= 100 else 1
    return (
        f"{row['mode']}, {row['dtype']}",
        f"{row['compute']:.2f}{saved}" if row["compute"] < 1 else "1 (plain)",
        f"{gmacs:.1f}" if gmacs >= 1 else f"{gmacs:.3f}",
        f"{p50:.{digits}f} ({p90:.{digits}f})",
        f"{rate:.0f}" if rate >= 100 else f"{rate:.2f}",
        f"{row['speedup']:.2f}",
        f"{row['ideal_speedup']:.2f}",
        f"{row.get('over_eager', 0):.2f}",
    )


if __name__ == "__main__":
    main()
