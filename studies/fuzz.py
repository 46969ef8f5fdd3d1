"""Count what becomes of files and requests that are wrong in a place, and write the tables of docs/trust.md.

How to run, from the project's root:
    python studies/fuzz.py run --cases 5000 --seed 0      what `make fuzz` does
    python studies/fuzz.py table
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.data import ROOT
from harness.runs import RESULTS
from harness.tables import markdown, show_in_docs

FOLDER = RESULTS / "fuzz"
#: What one request of a kind is, by its name in page.json.
REQUESTS = {
    "json": "a call of the API, its JSON wrong in a place",
    "values": "a call with other values, paths of the machine among them",
    "file": "a file of the machine",
    "upload": "an upload with an odd name",
    "form": "an upload, its form wrong in a place",
    "queue": "an entry of the queue, its JSON wrong in a place",
    "route": "another address, another method",
    "bytes": "bytes that are hardly a request",
    "too large": "an upload of 20 MB where 4 are taken",
    "at once": "an upload and a call, all at once, beside slow uploads",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["run", "table"])
    options.add_argument("--cases", type=int, default=5000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=60.0, help="for the cases")
    options.add_argument(
        "--out", type=Path, default=FOLDER, help="for the counts; tables are made of those in results/"
    )
    given = options.parse_args()
    code = 0
    if given.action == "run":
        seed, out = ["--seed", str(given.seed)], given.out.absolute()
        bounds = ["--cases", str(given.cases), "--minutes", str(given.minutes)]
        code = _count("tests.fuzz", [*bounds, *seed, "--out", str(out / "cases.json")])
        code |= _count("tests.fuzz.page", [*seed, "--out", str(out / "page.json")])
    if given.out == FOLDER:
        write_tables()
    sys.exit(code)


def write_tables() -> None:
    """Write a table of each file of counts, and put it on the page."""
    for name, table in (("cases", cases), ("page", page)):
        source = FOLDER / f"{name}.json"
        if source.exists():
            target = FOLDER / f"{name}.md"
            target.write_text(table(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
            show_in_docs(target)


def cases(counts: dict[str, Any]) -> str:
    """Return a row for each kind of case."""
    names = list(next(iter(counts["kinds"].values())))
    lines = [[kind, *(f"{count[name]:,}" for name in names)] for kind, count in counts["kinds"].items()]
    lines.append(["all", *(f"{sum(count[name] for count in counts['kinds'].values()):,}" for name in names)])
    return f"{_origin(counts, 'cases')}\n\n{markdown(['kind', *names], lines)}\n"


def page(counts: dict[str, Any]) -> str:
    """Return a row for each kind of request, and what was found at the end."""
    lines = []
    for kind, what in REQUESTS.items():
        of = {name.partition(": ")[2]: number for name, number in counts.items() if name.startswith(f"{kind}: ")}
        lines.append(
            [what, str(sum(of.values())), *(str(of.get(name, 0)) for name in ("answered", "refused", "fault"))]
        )
    end = (
        f"In the end: {counts['tracebacks_in_its_log']} tracebacks in the log, {counts['files_left']} files left, "
        f"at most {counts['peak_memory_mb']:,} MiB of memory, {len(counts['faults'])} faults in all."
    )
    table = markdown(["what was sent", "tried", "answered", "refused", "faults"], lines)
    return f"{_origin(counts, 'page')}\n\n{table}\n\n{end}\n"


def _count(module: str, options: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", module, *options], cwd=ROOT, check=False).returncode


def _origin(counts: dict[str, Any], name: str) -> str:
    return f"`results/fuzz/{name}.json`, seed {counts['seed']}, {counts['machine']}, commit {counts['commit']}."


if __name__ == "__main__":
    main()
