"""Kill the driver, the actors, the readers and the node of `sttm batch` at random moments, and count the rows after.

    python studies/kills.py --kills 30 --seed 0 --out results/kills/batch.json

Each round is a run into a new folder. At random moments something of it is killed with SIGKILL; a driver or a node that
was killed is followed by the same command again, which goes on. In the end every video must have one row, equal to that
of an undisturbed run to the bit (but for the seconds). The counts are printed, and the exit code is 1 if any is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.dataset

from sttm.synth.videos import SynthSettings, make

#: What is killed, by what its command line holds; the driver is the command itself.
TARGETS = {
    "driver": None,
    "decoding actor": "(Map(Decode))",
    "model actor": "(Map(Answer))",
    "reading process": "sttm.data.isolated",
    "node (raylet)": "raylet/raylet",
}
#: Seconds that a run may take before it counts as one that hangs.
PATIENCE = 1800
#: Kills in one round at most, after which it may come to its end.
EACH = 5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=30)
    options.add_argument("--videos", type=int, default=120)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--targets", default=",".join(TARGETS))
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with TemporaryDirectory(prefix="sttm-kills-") as folder:
        counts = run(Path(folder), given.kills, given.videos, given.seed, given.targets.split(","))
    print(json.dumps(counts, indent=1))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    sys.exit(int(any(counts[name] for name in ("rows_lost", "rows_twice", "rows_that_differ", "runs_that_hang"))))


def run(folder: Path, kills: int, videos: int, seed: int, targets: list[str]) -> dict[str, Any]:
    """Kill `kills` times in as many rounds as that takes, and return the counts."""
    rng, source = random.Random(seed), _corpus(folder, videos)
    expected = videos + 2
    began = time.monotonic()
    assert _command(source, folder / "whole").wait() == 1, "the undisturbed run did not end with its two bad files"
    whole, seconds = _rows(folder / "whole"), time.monotonic() - began
    assert sum(row["error"] is not None for row in whole) == 2, "rows of good videos have errors"
    killed: Counter[str] = Counter()
    counts: Counter[str] = Counter(rows_expected=0)
    while killed.total() < kills:
        output = folder / f"round-{counts['rounds']}"
        killed += _round(source, output, rng, targets, min(EACH, kills - killed.total()), seconds, counts)
        rows = _rows(output)
        numbers = Counter(row["number"] for row in rows)
        counts["rounds"] += 1
        counts["rows_expected"] += expected
        counts["rows_lost"] += expected - len(numbers)
        counts["rows_twice"] += sum(count - 1 for count in numbers.values())
        counts["rows_that_differ"] += sum(one != other for one, other in zip(rows, whole, strict=False))
        print(f"round {counts['rounds']}: {killed.total()} kills, {dict(counts)}", file=sys.stderr, flush=True)
    names = ("rounds", "runs", "runs_that_hang", "rows_expected", "rows_lost", "rows_twice", "rows_that_differ")
    return {"kills": killed.total(), "killed": dict(killed), "seed": seed} | {name: counts[name] for name in names}


def _round(
    source: Path, output: Path, rng: random.Random, targets: list[str], most: int, seconds: float, counts: Counter[str]
) -> Counter[str]:
    """Run into a folder until it is complete, killing on the way; return what was killed."""
    killed: Counter[str] = Counter()
    deadline = time.monotonic() + PATIENCE
    process = _command(source, output)
    counts["runs"] += 1
    due = time.monotonic() + rng.uniform(0, seconds / 2)
    while True:
        code = process.poll()
        if code is not None and code in (0, 1) and _finished(output):
            return killed
        if time.monotonic() > deadline:
            counts["runs_that_hang"] += 1
            process.kill()
            return killed
        if code is not None:
            process = _command(source, output)
            counts["runs"] += 1
            due = time.monotonic() + rng.uniform(0, seconds / 2)
        elif time.monotonic() > due and killed.total() < most:
            target = rng.choice(targets)
            if _kill(process.pid, target, rng):
                killed[target] += 1
                due = time.monotonic() + rng.uniform(0, seconds / 8)
        time.sleep(0.1)


def _corpus(folder: Path, videos: int) -> Path:
    """Make small videos and two files that are none, and return a list of all."""
    made = make(folder / "made", SynthSettings("motion", videos, frames=16, size=56), workers=1) / "videos"
    (made / "broken.mp4").write_text("<html>404</html>")
    names = [*sorted(str(path) for path in made.glob("*.mp4")), str(made / "absent.mp4")]
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder / "list.txt"


def _command(source: Path, output: Path) -> subprocess.Popen[bytes]:
    options = ["--part", "8", "--batch-size", "4", "--features", "pooled", "--model", "sttm-motion", "--memory", "0.2"]
    command = [sys.executable, "-m", "sttm", "batch", str(source), str(output), *options]
    with (output.with_name(f"{output.name}.log")).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _kill(driver: int, target: str, rng: random.Random) -> bool:
    """Kill one process of a kind; return whether there was one."""
    text = TARGETS[target]
    found = [driver] if text is None else [pid for pid, command in _below(driver) if text in command]
    if not found:
        return False
    try:
        os.kill(rng.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _below(driver: int) -> Iterator[tuple[int, str]]:
    """Yield the processes that a process has started, and those that these have, with their command lines."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue
    for pid, command in commands.items():
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        if above == driver and pid != driver:
            yield pid, command


def _finished(output: Path) -> bool:
    manifest = output / "manifest.json"
    return manifest.is_file() and bool(json.loads(manifest.read_text())["finished"])


def _rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts in the order of their numbers, less the seconds that reading them took."""
    if not list((output / "parts").glob("*.parquet")):
        return []
    rows = pyarrow.dataset.dataset(output / "parts", format="parquet").to_table().drop_columns(["seconds"])
    return sorted(rows.to_pylist(), key=lambda row: row["number"])


if __name__ == "__main__":
    main()
