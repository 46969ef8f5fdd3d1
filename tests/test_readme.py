"""The README and the pages speak of files, names and figures that are there."""

from __future__ import annotations

import json
import re

import pytest

import sttm
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EVIDENCE = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMES = r"(?:results|studies|docs|configs)/[\w/-]+\.\w+"


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_contributing_lists_every_folder_and_file_of_the_package() -> None:
    rows = [line.split("|")[1] for line in CONTRIBUTING.splitlines() if line.startswith("| `")]
    listed = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    package = ROOT / "src/sttm"
    there = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - listed == {"__init__.py", "__main__.py"}
    layers = {name for name in listed if (package / name).exists()}
    assert there - {"__init__.py", "__main__.py"} <= layers


@pytest.mark.parametrize("name", sorted(set(re.findall(NAMES, README + EVIDENCE + CONTRIBUTING))))
def test_what_it_points_to_is_there(name: str) -> None:
    # The rows of a study that was never run are not there yet.
    study = name.split("/")[1]
    assert (ROOT / name).is_file() or f"No runs yet: `python studies/{study}.py run`" in EVIDENCE


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
    engines = json.loads((ROOT / "results/speed-engines.json").read_text())["rows"]
    plain, both = [r for r in engines if r["dtype"] == "int8"]
    parts = f"{plain['over_eager']:.1f} times as fast as eager in fp32, merging to a half {both['speedup']:.1f} times"
    assert f"{parts}, both {both['over_eager']:.1f} times" in PERFORMANCE
    most, least = (f"{row['peak_memory_mb']:.0f}" for row in (fp32[0], fp32[-1]))
    assert f"needs at most {least} MiB, weights included,\n  and plain {most}" in PERFORMANCE
    merged = {r["dtype"]: r["over_eager"] for r in engines if r["mode"] == "openvino" and r["method"] == "sttm"}
    assert f"OpenVINO runs {merged['bf16']:.1f} times as fast as plain eager fp32 in bf16" in README
    assert f"and {merged['int8']:.1f} times in int8" in README
    finetuned, scratch = ((ROOT / f"results/{name}/table.md").read_text("utf-8") for name in ("finetune", "scratch"))
    (shown,) = [block for block in README.split("\n\n") if block.startswith("| method | variant | epochs")]
    assert f"### grid_words_lips, muon, compute 0.35\n\n{shown}\n" in finetuned
    section = scratch.partition("### grid_words_lips, muon, compute 0.35\n")[2].partition("###")[0]
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line]
    top1 = {(method, variant, epochs): shown for method, variant, epochs, _, _, _, shown, *_ in cells}
    names = ("plain", ""), ("sttm", ""), ("sttm", "no-motion")
    (plain, ours, without), long = ([top1[*name, epochs] for name in names] for epochs in ("16", "48"))
    parts = f"plain {plain}, STTM {ours}, without its motion feature {without}, DPC-KNN {top1['dpcknn', '', '16']}"
    late = top1["sttm", "late-motion", "48"]
    assert f"with it trained late {late}" in README
    assert parts in README and "plain {}, STTM {}, without the feature {}".format(*long) in README.replace("\n", " ")


def test_other_figures_of_the_evidence_are_those_that_were_measured() -> None:
    for row in json.loads((ROOT / "results/bundled/figures.json").read_text())["models"].values():
        low, high = row["interval"]
        assert f"{100 * row['top1']:.1f} % ({100 * low:.1f} to {100 * high:.1f})" in EVIDENCE
    for row in json.loads((ROOT / "results/kinds/figures.json").read_text()):
        assert f"{100 * row['top1']:.1f} %" in EVIDENCE
    for line in (ROOT / "results/real/table.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| five folds"):
            assert f"| {line.split('|')[4].strip()} | {line.split('|')[5].strip()} |" in EVIDENCE
    small = json.loads((ROOT / "results/speed.json").read_text())["rows"]
    (shipped,) = [r for r in small if r["method"] == "sttm (as saved)" and r["dtype"] == "fp32"]
    assert f"it runs {shipped['speedup']:.2f} times as fast as plain in fp32" in PERFORMANCE
    batches = json.loads((ROOT / "results/speed-small.json").read_text())["rows"]
    (many,) = [r for r in batches if r["method"] == "sttm (as saved)" and r["dtype"] == "fp32"]
    assert f"{shipped['speedup']:.2f} times one clip at a time, {many['speedup']:.2f} times in batches of 8" in README
    (pipeline,) = json.loads((ROOT / "results/pipeline.json").read_text())["rows"]
    assert f"runs at {pipeline['ratio']['p50']:.2f} of the slower" in PERFORMANCE
    assert f"percent {pipeline['ratio']['p10']:.2f} and {pipeline['ratio']['p90']:.2f};" in PERFORMANCE
