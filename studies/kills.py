"""Disturb `sttm batch` in every way that we can bring about, at random moments, and count the rows after.

    python studies/kills.py --out results/kills/batch.json

Each round is a run into a new folder. At random moments something of it is killed with SIGKILL: the driver, an actor, a
process that reads, the node. A driver or a node that was killed is followed by the same command again, which goes on.
While a round runs, a second run into its folder is tried; before it goes on, one with another setting. More rounds
write to a disk that is full at a random size and then gets larger (a tmpfs, which needs root and Linux). In the end
every video must have one row, equal to that of an undisturbed run to the bit (but for the seconds), and no part that
was finished may have been written again. The file, its table and the page have the counts so far after every round.
The exit code is 1 if any count that should be 0 is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.corpora import BATCH, finished, parts_of, rows_of
from harness.processes import MARK, below, kill, marked
from harness.provenance import provenance, publish, sentence
from harness.tables import markdown

from sttm.synth.videos import SynthSettings, make

#: What is killed, by what its command line holds; the driver is the command itself.
TARGETS = {
    "driver": None,
    "decoding actor": "(Map(Decode))",
    "model actor": "(Map(Answer))",
    "reading process": "sttm.data.isolated",
    "node (raylet)": "raylet/raylet",
}
#: What must be 0 in the end.
ZERO = (
    "runs_that_hang", "rows_lost", "rows_twice", "rows_that_differ", "rows_redone", "half_files", "wrong_refusals",
    "processes_left", "tracebacks",
)  # fmt: skip
#: What a run says, with exit code 2, where Ray was too slow.
NOT_STARTED = "Ray does not start on this machine"
#: Seconds that a round may take before it counts as one that hangs.
PATIENCE = 1800
#: Seconds that what a killed driver started may take to end.
GRACE = 300
#: Runs in a row that Ray may be too slow for, on a busy machine, before the study ends.
TRIES = 5
#: Kills in one round at most, after which it may come to its end.
EACH = 5
OPTIONS = ["--part", "8", "--batch-size", "4", "--features", "pooled", "--model", "sttm-motion", "--memory", "0.2"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=32)
    options.add_argument("--full-disks", type=int, default=3)
    options.add_argument("--videos", type=int, default=60)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--targets", default=",".join(TARGETS))
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    origin = provenance("python studies/kills.py " + shlex.join(sys.argv[1:]))

    def report(counts: dict[str, Any]) -> None:
        if given.out is not None:
            publish(given.out, origin | counts, table_of)

    with TemporaryDirectory(prefix="sttm-kills-") as folder:
        corpus = Corpus(Path(folder), random.Random(given.seed), report=report)
        counts = run(corpus, given.kills, given.videos, given.targets.split(","), full_disks=given.full_disks)
    print(json.dumps(origin | counts, indent=1))
    sys.exit(int(any(counts[name] for name in ZERO)))


@dataclass
class Corpus:
    """What is run again and again, the rows of an undisturbed run, and what was counted so far."""

    folder: Path
    rng: random.Random
    source: Path = Path()
    report: Callable[[dict[str, Any]], None] = lambda counts: None
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    """Of the undisturbed run."""
    bytes: int = 0
    """Of what it wrote."""

    def start(self, output: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start the command into an output folder; what it says goes to a log beside the folder."""
        command = [*BATCH, str(self.source), str(output), *OPTIONS, *options]
        self.counts["runs"] += 1
        with log_of(output).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {MARK: str(self.folder)})

    def complete(self, output: Path) -> None:
        """Run until all is done; on a busy machine Ray may need more than the time that it gives itself to start."""
        for _ in range(TRIES):
            code, told = self.told(output)
            if code == 1 and finished(output):
                return
            assert code == 2 and NOT_STARTED in told, f"a run ended with {code}: {told[-2000:]}"
        raise SystemExit(f"Ray did not start in {TRIES} runs; the machine is too busy")

    def told(self, output: Path, *options: str) -> tuple[int, str]:
        """Run the command to its end; return its exit code, and what it said."""
        before = log_of(output).stat().st_size if log_of(output).exists() else 0
        code = self.start(output, *options).wait(PATIENCE)
        return code, log_of(output).read_text()[before:]

    def refused(self, output: Path, said: str, *options: str, holder: subprocess.Popen[bytes] | None = None) -> bool:
        """Start a run that must be refused with a sentence; return False where the run that it met has ended since."""
        for _ in range(TRIES):
            code, told = self.told(output, *options)
            if NOT_STARTED not in told:
                break
        if holder is not None and holder.poll() is not None:
            return False
        if code != 2 or said not in told or "Traceback" in told:
            self.counts["wrong_refusals"] += 1
            print(f"exit code {code} and no refusal: {told[-2000:]}", file=sys.stderr, flush=True)
        return True

    def check(self, output: Path, kept: dict[str, tuple[int, int]]) -> None:
        """Count what is wrong with the rows of a round, whose parts were first seen as `kept` says."""
        rows, counts = rows_of(output), self.counts
        numbers = Counter(row["number"] for row in rows)
        counts["rounds"] += 1
        counts["rows_expected"] += len(self.rows)
        counts["rows_lost"] += len(self.rows) - len(numbers)
        counts["rows_twice"] += sum(count - 1 for count in numbers.values())
        counts["rows_that_differ"] += sum(one != other for one, other in zip(rows, self.rows, strict=False))
        now = parts_of(output)
        counts["rows_kept"] += sum(line[0] for line in kept.values())
        counts["rows_redone"] += sum(kept[name][0] for name in kept if now.get(name) != kept[name])
        counts["half_files"] += len([*output.rglob(".*")])
        deadline = time.monotonic() + GRACE
        while (left := marked(str(self.folder))) and time.monotonic() < deadline:
            time.sleep(0.5)
        counts["processes_left"] += len(left)
        told = log_of(output).read_text()
        counts["tracebacks"] += told.count("Traceback")
        counts["slow_starts"] += told.count(NOT_STARTED)
        print(f"round {counts['rounds']}: {dict(self.faults)}, {dict(counts)}", file=sys.stderr, flush=True)
        self.report(self.found())

    def found(self) -> dict[str, Any]:
        """Return the counts so far."""
        names = ("rounds", "runs", "slow_starts", "rows_expected", "rows_kept", *ZERO)
        return {"kills": killed(self), "faults": dict(self.faults)} | {name: self.counts[name] for name in names}


def run(corpus: Corpus, kills: int, videos: int, targets: list[str], *, full_disks: int = 0) -> dict[str, Any]:
    """Kill `kills` times in as many rounds as that takes, fill some disks, and return the counts."""
    whole = corpus.folder / "whole"
    corpus.source, bad = _videos(corpus.folder, videos)
    began = time.monotonic()
    corpus.complete(whole)
    corpus.rows, corpus.seconds = rows_of(whole), time.monotonic() - began
    corpus.bytes = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    numbers = [row["number"] for row in corpus.rows]
    assert numbers == list(range(videos + bad)), f"the undisturbed run has the rows {numbers}"
    corpus.faults["bad files"] = sum(row["error"] is not None for row in corpus.rows)
    assert corpus.faults["bad files"] == bad, "rows of good videos have errors, or bad ones none"
    while killed(corpus) < kills:
        _round(corpus, corpus.folder / f"round-{corpus.counts['rounds']}", targets, min(EACH, kills - killed(corpus)))
    for number in range(full_disks):
        _full_disk(corpus, corpus.folder / f"disk-{number}")
    return corpus.found()


def killed(corpus: Corpus) -> int:
    """Return how many kills there were so far."""
    return sum(corpus.faults[target] for target in TARGETS)


def _round(corpus: Corpus, output: Path, targets: list[str], most: int) -> None:
    """Run into a folder until it is complete, with faults on the way."""
    before, rng, kept = killed(corpus), corpus.rng, dict[str, tuple[int, int]]()
    deadline = time.monotonic() + PATIENCE
    process = corpus.start(output)
    due = time.monotonic() + rng.uniform(0, corpus.seconds)
    tried: set[str] = set()
    while not (process.poll() in (0, 1) and finished(output)):
        kept = parts_of(output) | kept
        if time.monotonic() > deadline:
            corpus.counts["runs_that_hang"] += 1
            process.kill()
            break
        if process.poll() is not None:
            if "setting" not in tried and (output / "manifest.json").is_file():
                tried.add("setting")
                corpus.refused(output, "--top-k was 5 and is 2", "--top-k", "2")
                corpus.faults["another setting"] += 1
            process = corpus.start(output)
            due = time.monotonic() + rng.uniform(0, corpus.seconds)
        elif "second" not in tried and (output / "run.lock").is_file() and (output / "run.lock").stat().st_size:
            if corpus.refused(output, f"process {process.pid} on", holder=process):
                tried.add("second")
                corpus.faults["a second run"] += 1
        elif time.monotonic() > due and killed(corpus) - before < most:
            if _kill(process.pid, target := rng.choice(targets), rng):
                corpus.faults[target] += 1
                due = time.monotonic() + rng.uniform(0, corpus.seconds / 3)
        time.sleep(0.1)
    corpus.check(output, kept)


def _full_disk(corpus: Corpus, disk: Path) -> None:
    """Run into a disk that is full before all rows are on it, give it more room, and run again."""
    disk.mkdir()
    size = int(corpus.rng.uniform(0.1, 0.8) * corpus.bytes)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "sttm-kills", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        print("no right to mount a tmpfs: no full disk was tried", file=sys.stderr)
        return
    with ExitStack() as ends:
        ends.callback(subprocess.run, ["umount", str(disk)], check=True)
        corpus.refused(disk / "rows", "No space left on device")
        kept = parts_of(disk / "rows")
        corpus.faults["full disk"] += 1
        subprocess.run(["mount", "-o", f"remount,size={corpus.bytes * 4}", str(disk)], check=True)
        corpus.complete(disk / "rows")
        corpus.check(disk / "rows", kept)


def _kill(driver: int, target: str, rng: random.Random) -> bool:
    """Kill one process of a kind; return whether there was one."""
    text = TARGETS[target]
    found = [driver] if text is None else [number for number, command in below(driver) if text in command]
    return bool(found) and kill(rng.choice(found))


def _videos(folder: Path, videos: int) -> tuple[Path, int]:
    """Make small videos, and files that are none; return a list of all, and how many are bad."""
    made = make(folder / "made", SynthSettings("motion", videos, frames=16, size=56), workers=1) / "videos"
    good = sorted(made.glob("*.mp4"))
    (made / "page.mp4").write_text("<html>404</html>")
    (made / "empty.mp4").touch()
    (made / "cut.mp4").write_bytes(good[0].read_bytes()[:300])
    os.mkfifo(made / "pipe.mp4")
    bad = ["page", "empty", "cut", "pipe", "absent"]
    names = [str(path) for path in good]
    for number, name in enumerate(bad):
        names.insert(number * len(names) // len(bad), str(made / f"{name}.mp4"))
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder / "list.txt", len(bad)


def table_of(found: dict[str, Any]) -> str:
    """Return the table of the page: the faults, and what was wrong after them."""
    faults = [(name, f"{count}") for name, count in found["faults"].items()]
    after = [(name.replace("_", " "), f"{found[name]}") for name in ("runs", "rows_expected", "rows_kept", *ZERO)]
    tables = markdown(("fault", "times"), faults), markdown(("after them", "count"), after)
    return "\n\n".join([*tables, sentence(found)]) + "\n"


def log_of(output: Path) -> Path:
    """Return where the command that was started last says what it has to say."""
    return output.with_name(f"{output.name}.log")


if __name__ == "__main__":
    main()
