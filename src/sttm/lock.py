"""One run in one output folder at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sttm.errors import SttmError

FILE = "run.lock"


@contextmanager
def locked(folder: Path, doing: str = "is training in", advice: str = "choose another run.output") -> Iterator[None]:
    """Hold the lock of an output folder while inside.

    It is a lock of the operating system on a file that names its holder. The system releases it when the process ends,
    however it ends, so that a file which a killed run left behind locks nothing. On a shared disk it holds between
    machines where the disk has locks. Child processes do not inherit it.

    Args:
        doing, advice: what its holder does there, and what to do other than stop it, for messages.

    Raises:
        SttmError: if another process holds it, naming that process.
    """
    path = folder / FILE
    with path.open("a+", encoding="utf-8") as file:
        if not _take(file.fileno()):
            file.seek(0)
            raise SttmError(f"{_holder(file.read())} {doing} {folder}; stop it, or {advice}")
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # the file stays: to delete it would let two others lock one each


def _take(descriptor: int) -> bool:
    """Return whether this process has the lock now; a system or a disk without locks has none to refuse."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _holder(text: str) -> str:
    """Return in words the process that a lock file names."""
    try:
        values = json.loads(text)
        return f"process {int(values['process'])} on {str(values['host'])[:100]}"
    except (ValueError, KeyError, TypeError):
        return "another process"
