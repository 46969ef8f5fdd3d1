"""Watch how much memory each process of `sttm batch` holds over a long run, and how much that grows.

    python studies/memory.py --out results/kills/memory.json

Small videos under 10,000 names go through one run. While it runs, the memory of the driver, of the actors that decode
and answer, of the processes that read, and of Ray's own is taken every few seconds (Linux: pages that processes share
are divided by those who do). Growth is the median over the last fifth of the run less that over the fifth after the
warm-up, which is the first fifth. The exit code is 1 if a kind grows by more than `FLAT` MB, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness.corpora import BATCH, finished, linked, parts_of
from harness.processes import below, resident_mb
from harness.provenance import provenance, publish, sentence
from harness.tables import markdown

#: Kinds of processes, by what their command lines hold; the first that fits.
KINDS = {
    "driver": "sttm batch",
    "decoding actor": "(Map(Decode))",
    "model actor": "(Map(Answer))",
    "processes that read": "sttm.data.isolated",
    "Ray": "",
}
#: MB that a kind may grow by in three fifths of the run, in which caches and pools of memory still settle a little.
FLAT = 32.0
PART = 256

Sample = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=10_000)
    options.add_argument("--every", type=float, default=2.0, help="seconds between two samples")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with TemporaryDirectory(prefix="sttm-memory-") as folder:
        source, output = linked(Path(folder), given.clips), Path(folder, "rows")
        samples, code = watch(source, output, given.every)
        complete = code == 0 and finished(output) and sum(rows for rows, _ in parts_of(output).values()) == given.clips
    grown = growth(samples)
    found = provenance("python studies/memory.py " + " ".join(sys.argv[1:])) | {
        "clips": given.clips,
        "complete": complete,
        "kinds": grown,
        "samples": thinned(samples, 100),
    }
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))
    if given.out is not None:
        publish(given.out, found, table_of)
    sys.exit(int(not complete or any(kind["growth_mb"] > FLAT for kind in grown.values())))


def watch(source: Path, output: Path, every: float) -> tuple[list[Sample], int]:
    """Run to the end; return samples, {"seconds", "rows", MB by kind}, and the exit code."""
    command = [*BATCH, str(source), str(output), "--part", str(PART), "--model", "sttm-motion", "--features", "pooled"]
    began, samples = time.monotonic(), list[Sample]()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        rows = sum(rows for rows, _ in parts_of(output).values())
        megabytes = Counter[str]()
        for number, line in [(process.pid, KINDS["driver"]), *below(process.pid)]:
            with suppress(OSError, StopIteration):  # one that has ended meanwhile
                megabytes[next(kind for kind, text in KINDS.items() if text in line)] += resident_mb(number)
        samples.append({"seconds": round(time.monotonic() - began, 1), "rows": rows} | dict(megabytes))
        time.sleep(every)
    return samples, process.returncode


def growth(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Return for each kind its memory after the warm-up and at the end, in MB, and the difference of the two."""
    last = max((sample["rows"] for sample in samples), default=0)
    spans = {"after_warm_up": (0.2, 0.4), "at_the_end": (0.8, 1.0)}
    found = {}
    for kind in KINDS:
        megabytes = {
            name: median([s.get(kind, 0.0) for s in samples if low * last < s["rows"] <= high * last] or [0.0])
            for name, (low, high) in spans.items()
        }
        grown = megabytes["at_the_end"] - megabytes["after_warm_up"]
        found[kind] = {f"{name}_mb": round(value, 1) for name, value in megabytes.items()}
        found[kind]["growth_mb"] = round(grown, 1)
    return found


def thinned(samples: list[Sample], most: int) -> list[Sample]:
    """Return at most so many samples, evenly over the run, with whole megabytes."""
    step = -(-len(samples) // most) or 1
    return [{name: round(value) for name, value in sample.items()} for sample in samples[::step]]


def table_of(found: dict[str, Any]) -> str:
    """Return the table of the page."""
    lines = [
        (kind, f"{of['after_warm_up_mb']:.0f}", f"{of['at_the_end_mb']:.0f}", f"{of['growth_mb']:+.1f}")
        for kind, of in found["kinds"].items()
    ]
    heads = (f"{found['clips']:,} clips", "MB after the warm-up", "MB at the end", "growth, MB")
    return f"{markdown(heads, lines)}\n\n{sentence(found)}\n"


if __name__ == "__main__":
    main()
