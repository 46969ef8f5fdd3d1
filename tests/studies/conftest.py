"""The studies as modules: studies/ is no package, its files import each other from their own folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import ROOT


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of studies/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    return importlib.import_module
