"""One test over all uses and all families; tests/ecosystem/registry.py says how the list is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sttm.backbones import FAMILIES, backbone_of
from tests.ecosystem import table
from tests.ecosystem.registry import ALIKE, EVERY, EXCEPTIONS, QUICK, SUBJECTS, USES, Room, Subject, Use, cells
from tests.helpers import ALL


def _cell(one: Use, subject: Subject) -> Any:
    marks: list[Any] = []
    if subject.name not in (QUICK if one.long else EVERY):
        marks.append(pytest.mark.extended)
    if reason := EXCEPTIONS.get((one.name, subject.name)):
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(one, subject, marks=marks, id=f"{one.name}-{subject.name}")


@pytest.mark.parametrize(("one", "subject"), [_cell(*pair) for pair in cells()])
@pytest.mark.filterwarnings("ignore")  # exporters, PEFT, FSDP2, accelerate and torch.ao warn of each other's names
def test_use(one: Use, subject: Subject, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    one.check(subject, Room(tmp_path, request))


def test_every_registered_family_is_on_the_list() -> None:
    """But timm's, whose package has to fit the torch that is installed: tests/backbones/test_timm.py."""
    assert {backbone_of(model()).family for model in ALL.values()} == {b.family for b in FAMILIES} - {"timm-vit"}


def test_exceptions_name_cells() -> None:
    assert {*ALIKE, *QUICK, *EVERY} <= {subject.name for subject in SUBJECTS}
    assert EXCEPTIONS.keys() <= {(one.name, subject.name) for one, subject in cells()}
    assert len({one.name for one in USES}) == len(USES) and len({s.name for s in SUBJECTS}) == len(SUBJECTS)


def test_the_page_has_the_table() -> None:
    assert table.on_the_page() == table.written(), "python -m tests.ecosystem writes it"
