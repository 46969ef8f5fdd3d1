"""The processes of a command: those below it, and those that it left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: Processes that carry this variable of the environment, or are below one that does, belong to a study.
MARK = "STTM_STUDY"


def below(process: int) -> Iterator[tuple[int, str]]:
    """Yield the processes that a process has started, and those that these have, with their command lines."""
    parents: dict[int, int] = {}
    for entry in _entries():
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
    for number in parents:
        above = number
        while above in parents and above != process:
            above = parents[above]
        if above == process and number != process:
            with suppress(OSError):
                yield number, Path("/proc", str(number), "cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")


def marked(value: str) -> list[int]:
    """Return the processes that were started with a value of `MARK` in their environment, and live."""
    found, text = [], f"{MARK}={value}".encode()
    for entry in _entries():
        with suppress(OSError):
            if text in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def resident_mb(process: int) -> float:
    """Return how much memory of its own a process holds, in MB: pages that it shares are divided by those who do."""
    text = Path("/proc", str(process), "smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024 / 1e6


def kill(process: int) -> bool:
    """Kill a process with SIGKILL; return whether it was there."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _entries() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal())
