"""Paired differences; and the tables and the page say what the rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import ROOT

FIELDS = {
    "study", "dataset", "method", "variant", "compute", "learned", "frames", "seed", "macs", "top1", "seconds",
    "commit", "machine",
}  # fmt: skip
STUDIES = ("tune", "equal", "offshelf", "ablation", "speed", "gates", "real", "scratch", "finetune", "calibrate")
WRITTEN = sorted(name for name in STUDIES if (ROOT / "results" / name / "rows.jsonl").exists())


@pytest.fixture
def row(tmp_path: Path) -> Any:
    """Return a row with these answers."""

    def made(correct: list[int], seed: int = 0) -> dict[str, Any]:
        answers = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        np.savez(answers, correct=np.array(correct, bool))
        return dict(answers=answers, seed=seed, top1=sum(correct) / len(correct), macs=1e9)

    return made


def test_a_paired_difference_is_of_the_same_clips_and_seeds(study: Any, row: Any) -> None:
    tables = study("harness.tables")
    many, few = [1] * 30 + [0] * 10, [1] * 10 + [0] * 30
    one = tables.Group((row(many, 0), row(many, 1), row(few, 2)))
    other = tables.Group((row(few, 0), row(many, 1)))
    found = tables.difference(one, other)
    assert one.same_seeds(one) and not one.same_seeds(other)
    assert found.by_seed == (0.5, 0.0) and found.p < 0.001
    assert found.shown == "+25.0 (+0.0 to +50.0), p < 0.001"
    # As many right, but others: nothing to tell them apart.
    swapped = tables.difference(tables.Group((row(many),)), tables.Group((row(many[::-1]),)))
    assert swapped.by_seed == (0.0,) and swapped.p == 1.0
    # One clip of forty is no evidence: it falls either way by a coin.
    assert tables.difference(tables.Group((row(many),)), tables.Group((row([0, *many[1:]]),))).p > 0.9
    assert tables.difference(one, tables.Group((row(many, 7),))) is None


def test_a_point_of_the_plot_is_plain_and_the_delta_over_common_seeds(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, lines = study("harness.tables"), {}

    def finish(path: Path, figure: Any, axes: Any) -> None:
        lines.update({line.get_label(): line.get_ydata() for line in axes[0][0].lines})

    monkeypatch.setattr(tables, "_finish", finish)
    runs = [
        ("plain", 0, 0.5),
        ("plain", 1, 0.7),
        ("sttm", 1, 0.8),
        ("dpcknn", 0, 0.4),
        ("dpcknn", 1, 0.4),
        ("tome", 2, 1.0),
    ]
    tables.plot(tmp_path / "plot.png", [
        dict(dataset="words", method=method, seed=seed, top1=top1, macs=1e9, compute=0.5) for method, seed, top1 in runs
    ])  # fmt: skip
    assert {name: list(map(float, y)) for name, y in lines.items() if name in ("sttm", "dpcknn", "plain", "tome")} == {
        "plain": [60.0], "sttm": [pytest.approx(70.0)], "dpcknn": [pytest.approx(40.0)],
    }  # fmt: skip


def test_studies_are_written() -> None:
    assert {"tune", "equal", "offshelf", "ablation", "speed", "gates", "real"} <= set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_have_all_fields_and_their_answers(name: str, study: Any) -> None:
    runs = study("harness.runs")
    rows = runs.rows_of(name)
    assert len({runs.row_id(found) for found in rows}) == len(rows)
    for found in rows:
        assert set(found) >= FIELDS and found["study"] == name and 0 <= found["top1"] <= 1
        assert "steps" in found or found["epochs"]
        if name not in ("speed", "real"):
            with np.load(found["answers"]) as answers:
                assert found["top1"] == pytest.approx(answers["correct"].mean())
                assert found["split"] == "test" and found["clips"] == len(answers["correct"])


@pytest.mark.parametrize("name", WRITTEN)
def test_tables_are_those_of_the_rows(name: str, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = study("harness.protocols" if name in ("scratch", "finetune") else name)
    monkeypatch.setattr(module, "folder_of", lambda *_: tmp_path)
    for plot in ("plot", "plot_curves"):
        monkeypatch.setattr(module, plot, lambda *_: None, raising=False)
    module.report(*([name] if name in ("scratch", "finetune") else []), "small", "test")
    tables = sorted(tmp_path.glob("*.md"))
    assert tmp_path / "table.md" in tables
    for table in tables:
        written = (ROOT / "results" / name / table.name).read_text(encoding="utf-8")
        assert table.read_text(encoding="utf-8") == written


def test_the_pages_show_the_tables() -> None:
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    for name in WRITTEN:
        shown = [page.split(f"<!-- results/{name}/table.md -->\n\n")[1:] for page in pages]
        tables = {after.split("\n<!-- end -->")[0] for found in shown for after in found}
        assert tables == {(ROOT / "results" / name / "table.md").read_text(encoding="utf-8")}, name
