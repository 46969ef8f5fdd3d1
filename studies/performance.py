"""Measure what docs/performance.md shows, and write its tables.

How to run, from the project's root; nothing else should run meanwhile:
    python studies/performance.py run                 all of it
    python studies/performance.py run models engines  these
    python studies/performance.py table               the tables again, from what was measured
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import frames
import realised
from harness.runs import RESULTS
from harness.tables import Row, markdown, show_in_docs

from sttm.benchmark import speed, train

HEADS = {
    "mode": "engine, dtype",
    "compute": "compute",
    "macs": "GMACs",
    "latency_ms": "ms a clip (p90)",
    "clips_per_s": "clips/s",
    "speedup": "speed-up",
    "ideal_speedup": "by multiply-adds alone",
    "over_eager": "over eager in fp32",
    "merger_share": "mergers' share",
}
TRAIN_HEADS = {
    "dtype": "dtype",
    "compute": "compute",
    "step_ms": "ms a step (p90)",
    "parts": "forward / backward / optimizer",
    "speedup": "speed-up",
    "ideal_speedup": "by multiply-adds alone",
    "peak_memory_mb": "peak of a step, MiB",
    "memory": "of plain",
    "loaded_memory_mb": "loaded, MiB",
}


@dataclass(frozen=True)
class Table:
    """A table of the page: the file of results/ that it is made of, and what measures that."""

    source: str
    measure: Callable[[], dict[str, Any]]
    heads: dict[str, str]


#: As the commands on the page say.
TABLES = {
    "models": Table(
        "speed.json",
        partial(speed.run, ["videomae-b", "sttm-motion"], dtypes=["fp32", "bf16"], rounds=7),
        HEADS,
    ),
    "batches": Table(
        "speed-small.json",
        partial(speed.run, ["sttm-motion"], batches=[8], dtypes=["fp32", "bf16"]),
        HEADS,
    ),
    "peers": Table(
        "speed-peers.json",
        partial(speed.run, ["videomae-b"], ["sttm", "tome", "random"], [1, 0.62], rounds=7),
        HEADS,
    ),
    "engines": Table(
        "speed-engines.json",
        partial(
            speed.run, ["videomae-b"], computes=[1, 0.5], engines=["eager", "openvino"],
            dtypes=["fp32", "bf16", "int8"], rounds=7,
        ),
        HEADS,
    ),
    "train": Table(
        "speed-train.json",
        partial(train.run, ["videomae-b"], computes=[1, 0.62, 0.4], batches=[2], rounds=3),
        TRAIN_HEADS,
    ),
}  # fmt: skip

#: Those that are more than one call of `sttm bench`: modules that measure, and write a table from what was measured.
MODULES = {"frames": frames, "realised": realised}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    names = [*TABLES, *MODULES]
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(names)}; left out, all of them")
    given = parser.parse_args()
    if wrong := [name for name in given.tables if name not in names]:
        parser.error(f"there is no table {wrong[0]}; known: {', '.join(names)}")
    for name in given.tables or names:
        if given.what == "run":
            print(f"measuring {name}", flush=True)
            _write_json(source_of(name), (MODULES[name] if name in MODULES else TABLES[name]).measure())
        if source_of(name).exists():
            show_in_docs(write(name))


def source_of(name: str) -> Path:
    """Return the measured file of a table."""
    return RESULTS / (f"performance/{name}.json" if name in MODULES else TABLES[name].source)


def write(name: str) -> Path:
    """Write a table from its measured file, and return where it is."""
    if name in MODULES:
        return MODULES[name].write(source_of(name))
    table = RESULTS / "performance" / f"{name}.md"
    table.write_text(table_of(name), encoding="utf-8")
    return table


def table_of(name: str) -> str:
    """Return a table: a section for each model and batch, a row for each measurement."""
    source = source_of(name)
    measured = json.loads(source.read_text(encoding="utf-8"))
    parts = [f"`results/{source.name}`, {measured['machine']}."]
    for (model, batch), group in groups(measured["rows"], "model", "batch").items():
        title = f"### {model}, {batch} clip{'s' * (batch > 1)} at a time"
        lines = [_line(row) for row in group]
        heads = {key: head for key, head in TABLES[name].heads.items() if any(line[key] for line in lines)}
        parts += [title, markdown(list(heads.values()), [[line[key] for key in heads] for line in lines])]
    return "\n\n".join(parts) + "\n"


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows by those keys, in the order in which they first occur."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return found


def _line(row: Row) -> dict[str, str]:
    """Return the cells of a row by name; those of what was not measured are empty."""
    cells = {key: f"{row[key]:.2f}" for key in ("speedup", "ideal_speedup", "over_eager", "memory") if row.get(key)}
    cells |= {key: f"{row[key]:,.0f}" for key in ("peak_memory_mb", "loaded_memory_mb") if row.get(key)}
    cells |= {"mode": f"{row['mode']}, {row['dtype']}", "dtype": row["dtype"], "compute": _compute(row)}
    gmacs, rate = row["macs"] / 1e9, row["clips_per_s"]
    cells |= {"macs": f"{gmacs:.1f}" if gmacs >= 1 else f"{gmacs:.3f}"}
    cells |= {"clips_per_s": f"{rate:.0f}" if rate >= 100 else f"{rate:.2f}"}
    if row.get("merger_share"):
        cells["merger_share"] = f"{100 * row['merger_share']:.1f} %"
    for key, clips in (("latency_ms", row["batch"]), ("step_ms", 1)):
        if key in row:
            p50, p90 = (row[key][level] / clips for level in ("p50", "p90"))
            digits = 0 if p50 >= 100 else 1
            cells[key] = f"{p50:.{digits}f} ({p90:.{digits}f})"
    if "forward_ms" in row:
        cells["parts"] = " / ".join(f"{row[f'{part}_ms']:.0f}" for part in train.PARTS)
    return defaultdict(str, cells)


def _compute(row: Row) -> str:
    if row["compute"] == 1:
        return "1 (plain)"
    other = {"sttm": "", "sttm (as saved)": ", as saved"}.get(row["method"], f", {row['method']}")
    return f"{row['compute']:.2f}{other}"


def _write_json(path: Path, measured: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
