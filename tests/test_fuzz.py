"""Cases of `make fuzz`, a few of them, and those that once were faults; everything whole is answered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import ROOT

#: Cases that were faults, each a folder or file `<kind> - <what it is>`.
KEPT = sorted(path for path in (ROOT / "tests" / "fuzz_cases").iterdir() if not path.name.startswith("."))
SEED, CASES = 0, 40


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    from tests.fuzz import seeds

    return seeds.make(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def judge(made: Path):
    from tests.fuzz.judge import Judge

    return Judge(made)


def test_everything_whole_is_answered(made: Path, judge) -> None:
    from tests.fuzz import seeds
    from tests.fuzz.cases import Case

    verdicts = {str(path): judge.judge(Case(kind, str(path))) for kind, path in seeds.whole(made)}
    assert {verdict.outcome for verdict in verdicts.values()} == {"answered"}, verdicts


def test_cases_are_answered_or_refused_in_a_sentence(made: Path, judge, tmp_path: Path) -> None:
    from tests.fuzz import cases

    verdicts = []
    for number in range(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        verdicts.append((number, judge.judge(cases.make(number, SEED, made, folder))))
    assert not [verdict for verdict in verdicts if verdict[1].is_fault]
    assert {verdict.outcome for _, verdict in verdicts} == {"answered", "refused"}


@pytest.mark.parametrize("kept", KEPT, ids=[path.name for path in KEPT])
def test_what_was_a_fault_is_none(kept: Path, made: Path, judge, tmp_path: Path) -> None:
    """A kept model or checkpoint has only the files that are wrong; the others are those of the whole one."""
    from tests.fuzz.cases import Case

    kind = kept.name.partition(" - ")[0]
    path = tmp_path / "kept"
    if kept.is_dir():
        whole = {"model": made / "plain", "merged": made / "merged"}.get(kind)
        if whole is not None:
            shutil.copytree(whole, path)
        shutil.copytree(kept, path, dirs_exist_ok=True)
    else:
        path = Path(shutil.copy(kept, tmp_path / f"kept{kept.suffix}"))
    verdict = judge.judge(Case(kind, str(path)))
    assert not verdict.is_fault, verdict


@pytest.mark.parametrize("fault", ["crash", "hang", "memory", "exception"])
def test_the_judge_sees_every_fault(fault: str, judge, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from tests.fuzz.cases import Case

    def entry(path: str) -> None:
        match fault:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                os.kill(os.getpid(), signal.SIGXCPU)  # as the system does after `judge.CPU` seconds
            case "memory":
                bytearray(2**40)
            case _:
                raise KeyError("x")

    monkeypatch.setitem(judge.entries, "clip", entry)
    assert judge.judge(Case("clip", "x")).outcome == fault
