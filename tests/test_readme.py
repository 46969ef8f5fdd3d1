"""The README speaks of files, names and figures that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sttm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_house_is_drawn_as_it_stands() -> None:
    tree = README.split("## The house")[1].split("```")[1]
    drawn = {name for name in re.findall(r"[\w/]+\.py", tree) if not name.startswith("studies")}
    built = {str(path.relative_to(ROOT / "src/sttm")) for path in (ROOT / "src/sttm").rglob("*.py")}
    assert drawn == {name for name in built if not name.endswith("__init__.py")}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:results|studies|docs)/[\w/-]+\.\w+", README))))
def test_what_it_points_to_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"sttm\.([a-zA-Z]+)\(", README))))
def test_names_it_calls_are_public(name: str) -> None:
    assert name in sttm.__all__


def test_figures_are_those_that_were_measured() -> None:
    rows = json.loads((ROOT / "results/speed.json").read_text())["rows"]
    fp32, bf16 = (
        [r for r in rows if r["model"].startswith("videomae-b") and r["dtype"] == d] for d in ("fp32", "bf16")
    )
    for one, other in zip(fp32[1:], bf16[1:], strict=True):
        speeds = [f"{row['clips_per_s']:.3f} | {row['speedup']:.2f}" for row in (one, other)]
        assert f"| {one['macs'] / 1e9:.1f} | {speeds[0]} | {speeds[1]} | {one['ideal_speedup']:.2f} |" in README
    for row in json.loads((ROOT / "results/bundled/figures.json").read_text())["models"].values():
        low, high = row["interval"]
        assert f"{100 * row['top1']:.1f} % ({100 * low:.1f} to {100 * high:.1f})" in README
    for row in json.loads((ROOT / "results/kinds/figures.json").read_text()):
        assert f"{100 * row['top1']:.1f} %" in README
    for line in (ROOT / "results/real/table.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| five folds"):
            assert f"| {line.split('|')[4].strip()} | {line.split('|')[5].strip()} |" in README
    table = (ROOT / "results/offshelf/table.md").read_text(encoding="utf-8")
    shown = README.split("`results/offshelf/table.md`, written")[1].split("\n\n")
    assert all(line in table for line in (*shown[1].splitlines(), *shown[3].splitlines()))
    table = (ROOT / "results/tune/table.md").read_text(encoding="utf-8")
    in_short = README.split("`results/tune/table.md`,")[1].split("\n\n")[1]
    assert in_short.count("\n") == 7 and in_short in table
    table = (ROOT / "results/equal/table.md").read_text(encoding="utf-8")
    assert README.split("`results/equal/table.md`, written")[1].split("\n\n")[1] in table
    (pipeline,) = json.loads((ROOT / "results/pipeline.json").read_text())["rows"]
    assert f"runs at {pipeline['ratio']['p50']:.2f} of the slower" in README
    assert f"percent {pipeline['ratio']['p10']:.2f} and {pipeline['ratio']['p90']:.2f};" in README
