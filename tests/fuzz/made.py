"""Where counts come from, and how they are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sttm.devices import machine


def about(seed: int) -> dict[str, Any]:
    """Return the seed, the commit (with a plus where the code was changed since) and the machine."""
    commit, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "--", "src", "tests")
    return {"seed": seed, "commit": commit + "+" * bool(changed), "machine": machine(torch.device("cpu"))}


def write(counts: dict[str, Any], out: Path | None) -> None:
    """Print the counts, write them to a file, and end: with 1 if there are faults."""
    text = json.dumps(counts, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    sys.exit(int(bool(counts["faults"])))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
