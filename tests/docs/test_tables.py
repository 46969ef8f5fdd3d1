"""The tables on the pages are those in results/."""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT

MARKED = re.compile(r"<!-- (results/(\w+)/\w+\.md) -->\n(.*?)<!-- end -->", re.S)
SHOWN = [
    pytest.param(*found, id=f"{page.name} {found[0]}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for found in MARKED.findall(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("table", "study", "content"), SHOWN)
def test_a_page_shows_a_table_as_the_study_wrote_it(table: str, study: str, content: str) -> None:
    """A study that was never run has no table yet, and its page says so."""
    never = f"No runs yet: `python studies/{study}.py run`.\n"
    wanted = (ROOT / table).read_text(encoding="utf-8") if (ROOT / table).exists() else never
    assert content == f"\n{wanted}\n"
