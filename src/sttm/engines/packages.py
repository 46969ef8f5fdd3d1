"""The packages that engines need; the extra `export` brings all of them."""

from __future__ import annotations

from importlib.util import find_spec

from sttm.errors import SttmError


def missing(*packages: str) -> list[str]:
    """Return those of the packages that are not installed."""
    return [package for package in packages if find_spec(package) is None]


def require(*packages: str) -> None:
    """Raise SttmError with the line that installs what is absent."""
    if absent := missing(*packages):
        verb = "is" if len(absent) == 1 else "are"
        raise SttmError(f"this needs {' and '.join(absent)}, which {verb} not installed: pip install 'sttm[export]'")
