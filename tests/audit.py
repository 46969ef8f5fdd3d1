"""Look up known faults of the pinned packages at OSV, with pip-audit in an environment of its own.

python tests/audit.py                  what `make audit` does: fails too where OSV cannot be reached
python tests/audit.py --if-reachable   what .ci/run does: says so there, and passes
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Nothing of it is among the pins.
FOLDER, PIP_AUDIT = ROOT / ".venv" / "audit", "pip-audit==2.10.1"
#: A fault that is known for certain.
KNOWN = "https://api.osv.dev/v1/vulns/GHSA-462w-v97r-4m45"


def main() -> int:
    if not reachable():
        print("the pinned packages were not audited: OSV, which knows their faults, cannot be reached", file=sys.stderr)
        return int("--if-reachable" not in sys.argv)
    program = FOLDER / "bin" / "pip-audit"
    if not program.exists():
        venv.create(FOLDER, with_pip=True, clear=True)
        subprocess.run([FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", PIP_AUDIT], check=True)
    options = ["--vulnerability-service", "osv", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    return subprocess.run([program, *options, "-r", ROOT / "constraints.txt"], check=False).returncode


def reachable() -> bool:
    try:
        with urllib.request.urlopen(KNOWN, timeout=20) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
