"""The tables on the pages are those in results/."""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT

MARKED = re.compile(r"<!-- (results/(\w+)/\w+\.md) -->\n(.*?)<!-- end -->", re.S)
NEVER = re.compile(r"No runs yet: `python (studies/\w+\.py) (?:run|--out (\S+))`\.\n")
SHOWN = [
    pytest.param(*found, id=f"{page.name} {found[0]}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for found in MARKED.findall(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("table", "study", "content"), SHOWN)
def test_a_page_shows_a_table_as_the_study_wrote_it(table: str, study: str, content: str) -> None:
    """A study that was never run has no table yet, and its page says so, with the command that writes it."""
    if (ROOT / table).exists():
        assert content == f"\n{(ROOT / table).read_text(encoding='utf-8')}\n"
        return
    never = NEVER.fullmatch(content[1:-1])
    assert never is not None and (ROOT / never[1]).is_file(), content
    assert never[2] == table.replace(".md", ".json") if never[2] else never[1] == f"studies/{study}.py"
