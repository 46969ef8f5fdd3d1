"""Where figures come from: the commit of the code, and the machine."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@cache
def commit() -> str:
    """Return the commit of the code, with a plus where it has been changed since."""
    changed = _git("status", "--porcelain", "--", "src", "studies", "configs")
    return _git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


def provenance(command: str) -> dict[str, Any]:
    """Return what a results file says first: the command that wrote it, the commit, the machine."""
    import torch

    from sttm.devices import machine

    return {"command": command, "commit": commit(), "machine": machine(torch.device("cpu"))}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
