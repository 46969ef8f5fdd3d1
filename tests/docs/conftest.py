"""Running the blocks of a page."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture
def typed(sttm) -> Callable[[str], list[str]]:
    """Run a shell block in the working directory, sttm itself in this process; return what each line printed."""

    def run(block: str) -> list[str]:
        said = []
        for line in filter(str.strip, block.splitlines()):
            words = shlex.split(line, comments=True)
            if words[0] == "sttm":
                outcome = sttm(*words[1:])
                assert outcome.code == 0 and "Traceback" not in outcome.err, (line, outcome.err)
                said.append(outcome.out)
            else:
                done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
                said.append(done.stdout)
        return said

    return run
