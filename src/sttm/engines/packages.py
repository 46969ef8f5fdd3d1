"""The packages that engines need; the extra `export` brings all of them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from sttm.errors import SttmError


def missing(*packages: str) -> list[str]:
    """Return those of the packages that are not installed."""
    return [package for package in packages if find_spec(package) is None]


def require(*packages: str) -> None:
    """Raise SttmError with the line that installs what is absent."""
    if absent := missing(*packages):
        verb = "is" if len(absent) == 1 else "are"
        raise SttmError(f"this needs {' and '.join(absent)}, which {verb} not installed: pip install 'sttm[export]'")


def openvino() -> Any:
    """Return openvino, imported without its telemetry unless that is imported already: sttm reports to nobody."""
    require("openvino")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
