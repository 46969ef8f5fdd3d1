"""Mutate clips, lists, configs, models, checkpoints, shards and commands, and judge what sttm makes of each.

    python -m tests.fuzz --cases 5000 --seed 0 --out results/fuzz/cases.json

Prints the counts as JSON and each fault on stderr; the exit code is 1 if there is one. `--keep` copies what made them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first case")
    options.add_argument("--minutes", type=float, default=60.0, help="end after so long, whatever is left")
    options.add_argument("--keep", type=Path, help="folder for the cases that are faults")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    from tests.fuzz.made import about, write

    with TemporaryDirectory(prefix="sttm-fuzz-") as folder:
        counts = run(Path(folder), range(given.first, given.first + given.cases), given.seed, given.minutes, given.keep)
    write(about(given.seed) | counts, given.out)


def run(folder: Path, numbers: range, seed: int, minutes: float = 60.0, keep: Path | None = None) -> dict[str, Any]:
    """Make and judge the cases of some numbers, and return the counts and the faults."""
    from tests.fuzz import cases, seeds
    from tests.fuzz.judge import OUTCOMES, Judge

    judge, deadline = Judge(seeds.make(folder)), time.monotonic() + 60 * minutes
    kinds: dict[str, dict[str, int]] = {}
    faults = []
    for number in numbers:
        if time.monotonic() > deadline:
            break
        place = folder / "case"
        place.mkdir()
        case = cases.make(number, seed, folder, place)
        verdict = judge.judge(case)
        count = kinds.setdefault(case.kind, dict.fromkeys(("tried", *OUTCOMES), 0))
        count["tried"] += 1
        count[verdict.outcome] += 1
        if verdict.is_fault:
            faults.append({"number": number, "kind": case.kind, "outcome": verdict.outcome, "said": verdict.said})
            print(json.dumps(faults[-1]), file=sys.stderr, flush=True)
            if keep is not None:
                shutil.copytree(place, keep / f"{seed}-{number}", symlinks=True, dirs_exist_ok=True)
        for path in place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o600)
        shutil.rmtree(place)
    cases_tried = sum(count["tried"] for count in kinds.values())
    return {"seed": seed, "cases": cases_tried, "kinds": dict(sorted(kinds.items())), "faults": faults}


if __name__ == "__main__":
    main()
