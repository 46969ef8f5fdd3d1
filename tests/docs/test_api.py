"""The API page has every public name, and the site builds without a warning."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

import sttm
from tests.helpers import ROOT


def test_the_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = {name.rpartition(".")[2] for name in re.findall(r"^::: (sttm\.[\w.]+)$", page, re.M)}
    assert set(sttm.__all__) <= described


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path) -> None:
    pytest.importorskip("zensical", reason="the extra docs brings zensical")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    assert run.returncode == 0 and "griffe:" not in said, said[-3000:]
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="sttm.patching.api.apply"' in page and "multiply-adds" in page
