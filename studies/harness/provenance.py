"""Where figures come from: the commit of the code, and the machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness.tables import show_in_docs

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


def sentence(found: dict[str, Any]) -> str:
    """Return where the figures of a file come from, as it stands below a table."""
    return f"Written by `{found['command']}`. Machine: {found['machine']}. Commit: {found['commit']}."


def publish(file: Path, found: dict[str, Any], table_of: Callable[[dict[str, Any]], str]) -> None:
    """Write figures to results/<study>/<name>.json, their table beside it, and that to the pages with its marks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = file.with_suffix(".md")
    table.write_text(table_of(found), encoding="utf-8")
    if file.resolve().parents[1] == ROOT / "results":
        show_in_docs(table.resolve())


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
