"""The commands, settings and examples on the pages of docs/ work as they are written."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import yaml

import sttm
from sttm.backbones import FAMILIES
from sttm.config import Settings
from sttm.config.sections import DataSettings, SplitSettings
from sttm.data.datasets.formats import FORMATS, read_annotations
from sttm.data.datasets.video_set import read_split
from sttm.data.video.read import Sampling, read
from sttm.synth.clips import render
from sttm.synth.videos import SynthSettings, encode, make
from sttm.visual.demo import EXAMPLES
from tests.helpers import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
#: The pages all of whose blocks run below (that of serve.md in tests/serving), but those that say in their first line
#: why not.
RUN = {
    "README.md",
    "docs/batch.md",
    "docs/calibrate.md",
    "docs/ecosystem.md",
    "docs/export.md",
    "docs/families.md",
    "docs/finetune.md",
    "docs/lightning.md",
    "docs/performance.md",
    "docs/pictures.md",
    "docs/serve.md",
    "docs/stream.md",
    "docs/trainer.md",
}
Typed = Callable[[str], list[str]]
EXCUSE = re.compile(r"# needs (a GPU|the network): \S")


def fenced(page: str) -> list[tuple[str, str]]:
    """Return language and content of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


def blocks(page: str, *languages: str) -> list[str]:
    """Return the blocks of a page that are in these languages and have no excuse for not being run."""
    return [content for language, content in fenced(page) if language in languages and not EXCUSE.match(content)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_not(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {language for language, _ in fenced(page)} <= {"", "bibtex", "python", "sh", "text", "yaml"}
    assert not blocks(page, "python", "sh") or page in RUN
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    assert not re.search(r"\n\n    \S", outside), "code that is indented and not fenced is never run"


def fill(folder: Path) -> None:
    """Write small synthetic videos to the folders that the first command of finetune.md makes."""
    for split, first, clips in (("train", 0, 4), ("validation", 100, 2)):
        for number, name in enumerate(("waving", "clapping")):
            for i in range(clips):
                pictures, _, _ = render("scene", first + 16 * i + number, 0, frames=8, size=32)
                encode(pictures, folder / split / name / f"{i}.mp4")


def test_families_page_adds_a_family_in_under_sixty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    restored, added = blocks("docs/families.md", "python")
    registered = list(FAMILIES)
    try:
        for block in (restored, added):
            exec(compile(block, "docs/families.md", "exec"), {})
        assert FAMILIES[0].family == "ijepa" and len(added.splitlines()) < 60
    finally:
        FAMILIES[:] = registered
    assert "tokens come back" in capsys.readouterr().out


@pytest.mark.slow
def test_finetune_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed) -> None:
    (config,), steps = blocks("docs/finetune.md", "yaml"), blocks("docs/finetune.md", "sh", "python")
    (tmp_path / "my-videos.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    said = {}
    for step in steps[:-1]:
        said[" ".join(step.split()[:2])] = "".join(typed(step))
        if step.startswith("mkdir"):
            fill(tmp_path / "my-videos")
    assert "train" in said["sttm data"] and "validation" in said["sttm data"]
    run = tmp_path / "runs" / "my-videos"
    for folder in ("best", "model"):
        assert sttm.macs(sttm.load(run / folder)) > 0
    trained = json.loads((run / "results.json").read_text())
    assert trained["compute"] <= 0.62
    records = [json.loads(line) for line in said["sttm predict"].splitlines()]
    assert len(records) == 2
    assert {prediction["label"] for prediction in records[0]["predictions"]} == {"waving", "clapping"}
    # What is measured is what is used: the answers of step 4 are those of step 5, from the shell and from Python.
    with (tmp_path / "results" / "predictions.csv").open(newline="") as file:
        measured = {
            Path(row["path"]).name: row["prediction_1"] for row in csv.DictReader(file) if "waving" in row["path"]
        }
    assert {Path(record["path"]).name: record["predictions"][0]["label"] for record in records} == measured
    top1 = json.loads((tmp_path / "results" / "summary.json").read_text())["top1"]
    assert top1 == trained["validation"]["top1"]
    names: dict[str, object] = {}
    exec(compile(steps[-1], "docs/finetune.md", "exec"), names)  # the page is ours
    assert names["record"]["predictions"][0]["label"] in ("waving", "clapping")  # type: ignore[index]


@pytest.mark.slow
def test_readme_works_as_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_model: Path,
    capsys: pytest.CaptureFixture[str],
    typed: Typed,
) -> None:
    """Runs its Python and its commands, with a small folder in place of the checkpoint of the hub."""
    hub = "MCG-NJU/videomae-base-finetuned-kinetics"
    load, *use = [content for language, content in fenced("README.md") if language == "python"]
    assert hub in load and len(use) == 1
    for i, name in enumerate(("ant", "bee", "cat")):
        pictures, _, _ = render("scene", i, 0, frames=8, size=32)
        (tmp_path / "clips" / name).mkdir(parents=True)
        encode(pictures, tmp_path / "clips" / name / "1.mp4")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(load.replace(hub, str(small_model)), "README.md", "exec"), names)  # the page is ours
    names["pixels"] = torch.zeros(1, 8, 3, 32, 32)
    exec(compile(use[0], "README.md", "exec"), names)
    assert "multiply" not in (said := capsys.readouterr().out) and "compute 0." in said and said.count("{'path'") == 3
    (commands,) = blocks("README.md", "sh")
    assert [command.split()[1] for command in commands.splitlines()] == ["predict", "eval", "bench", "configs"]
    printed = typed(commands)
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert {row["prediction_1"] for row in csv.DictReader(file)} <= {"ant", "bee", "cat"}
    assert "top-1" in printed[1] and "speedup" in printed[2] and "ut_interaction" in printed[3]


@pytest.mark.slow
def test_calibrate_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed) -> None:
    commands, (code,) = blocks("docs/calibrate.md", "sh"), blocks("docs/calibrate.md", "python")
    assert [command.split()[1] for command in commands] == ["calibrate", "distill", "predict"]
    made = make(tmp_path / "made", SynthSettings("motion", 20, frames=16, size=56), workers=1)
    (made / "videos").rename(tmp_path / "my-videos")
    monkeypatch.chdir(tmp_path)
    printed = ["".join(typed(command)) for command in commands]
    assert len(printed[-1].splitlines()) == 20
    exec(compile(code, "docs/calibrate.md", "exec"), {})  # the page is ours
    for folder in ("calibrated", "calibrated-from-python", "distilled"):
        assert 0.39 < sttm.macs(sttm.load(folder)) / sttm.macs(sttm.load("sttm-motion-plain")) <= 0.4, folder


@pytest.mark.slow
def test_batch_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed) -> None:
    pytest.importorskip("ray", reason="the extra batch brings ray")
    (command,), (code,) = blocks("docs/batch.md", "sh"), blocks("docs/batch.md", "python")
    made = make(tmp_path / "made", SynthSettings("motion", 20, frames=16, size=56), workers=1)
    (made / "videos").rename(tmp_path / "my-videos")
    monkeypatch.chdir(tmp_path)
    (said,) = typed(command)
    assert "videos per s" in said
    names: dict[str, object] = {}
    exec(
        compile(code.replace(".to_pandas().head()", ".to_pylist()"), "docs/batch.md", "exec"), names
    )  # the page is ours
    rows = names["table"].to_pylist()  # type: ignore[attr-defined]
    assert [row["number"] for row in rows] == list(range(20)) and not any(row["error"] for row in rows)
    assert all(len(row["pooled"]) == len(rows[0]["pooled"]) > 100 for row in rows)


@pytest.mark.slow
def test_export_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed) -> None:
    """The script runs where neither torch nor sttm can be imported, and says what `sttm predict` says."""
    (commands,), (code,) = blocks("docs/export.md", "sh"), blocks("docs/export.md", "python")
    made = make(tmp_path / "made", SynthSettings("motion", 18, frames=20, size=64), workers=1)
    videos = [str(path) for path in sorted((made / "videos").glob("*.mp4"))]
    monkeypatch.chdir(tmp_path)
    typed(commands.splitlines()[0])
    (tmp_path / "without").mkdir()
    for name in ("torch", "sttm", "transformers"):
        (tmp_path / "without" / f"{name}.py").write_text("raise ImportError('this machine has none')")
    (tmp_path / "run.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "run.py", *videos], env=os.environ | {"PYTHONPATH": "without"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = [
        f"{path} {[prediction['label'] for prediction in json.loads(line)['predictions']]}"
        for path, line in zip(
            videos, "".join(typed(shlex.join(["sttm", "predict", *videos, "--json"]))).splitlines(), strict=True
        )
    ]
    assert done.stdout.splitlines() == wanted


def test_settings_on_the_pages_are_settings() -> None:
    """The page's other settings are changes to those that it begins with."""
    (config,), changes = blocks("docs/finetune.md", "yaml"), blocks("docs/finetune.md", "text")
    found = []
    for change in (config, *changes):
        values = yaml.safe_load(config)
        for section, settings in yaml.safe_load(change).items():
            values[section] = values.get(section, {}) | settings
        found.append(Settings.model_validate(values))
        assert found[-1].merging.compute == 0.62
    _, large, pictures, muon = found
    assert pictures.model.resize == 96 and pictures.augment.shift == 2
    assert large.model.start == "MCG-NJU/videomae-base" and large.optimizer.micro_batch == 8
    assert muon.optimizer.name == "muon" and muon.optimizer.muon_lr == 0.02
    (data,) = blocks("docs/data.md", "yaml")
    assert DataSettings.model_validate(yaml.safe_load(data)["data"]).without == ("other",)


def test_trainer_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "validation"):
        for name in ("waving", "clapping"):
            (tmp_path / "my-videos" / split / name).mkdir(parents=True)
    fill(tmp_path / "my-videos")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/trainer.md", "python")
    names: dict[str, object] = {"__name__": "recipe"}
    exec(compile(code, "docs/trainer.md", "exec"), names)  # the page is ours
    model, trainer = names["model"], names["trainer"]
    merged = sttm.load("merged")
    assert merged.config.id2label == {0: "clapping", 1: "waving"}
    assert sttm.macs(merged) <= 0.62 * sttm.macs(sttm.load("sttm-motion-plain"))
    assert trainer.state.global_step == 4  # type: ignore[attr-defined]
    # The saved weights are the trained ones, and the merger's parameters that begin with zeros were trained.
    trained = trainer.model.state_dict()  # type: ignore[attr-defined]
    assert all((trained[name] == value).all() for name, value in model.state_dict().items())  # type: ignore[attr-defined]
    fresh = sttm.load("sttm-motion-plain")
    sttm.apply(fresh, compute=0.62, learned=True)
    still = [name for name, value in fresh.state_dict().items() if ".merger." in name and not value.any()]
    assert still and all(trained[name].any() for name in still)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks for a name that transformers deprecates
def test_ecosystem_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLES / "bin.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    found = blocks("docs/ecosystem.md", "python")
    assert len(found) == 6
    for code in found:
        code = code.replace("file:///tmp/store", f"file://{tmp_path}/store")
        exec(compile(code, "docs/ecosystem.md", "exec"), {"__name__": "page"})  # the page is ours
    for folder in ("merged", "base", "adapted"):
        assert sttm.macs(sttm.load(folder)) <= 0.62 * sttm.macs(sttm.load("sttm-motion-plain"))


@pytest.mark.filterwarnings("ignore")  # few batches, few workers; and what Lightning calls that torch has deprecated
def test_lightning_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="the extra dev brings lightning")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/lightning.md", "python")
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "docs/lightning.md", "exec"), names)  # the page is ours
    trained, again = names["module"].model.state_dict(), names["again"].model.state_dict()
    assert all(torch.equal(again[name].cpu(), value.cpu()) for name, value in trained.items())
    fresh = names["Merged"]().model.state_dict()
    assert any(".merger." in name and not torch.equal(value, again[name].cpu()) for name, value in fresh.items())
    assert sttm.macs(sttm.load("merged")) == names["module"].plan.macs_after


def sections() -> dict[str, tuple[str, str, str]]:
    """Of data.md, for each format: the name of the file, the path of its first video, what is in it."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("## Annotation formats")[1].split("\n## ")[0]
    found = {}
    for section in text.split("\n### ")[1:]:
        name, _, rest = section.partition("\n")
        match = re.search(r"`([^`]+)`, the first\s+video is `([^`]+)`", rest)
        block = re.search(r"^```\n(.*?)^```$", rest, re.S | re.M)
        assert match and block, name
        found[name] = (match[1], match[2], block[1])
    return found


def test_the_page_has_every_format() -> None:
    assert sections().keys() == FORMATS.keys()


@pytest.mark.parametrize("name_of_format", FORMATS)
def test_example_of_a_format_reads_as_the_page_says(name_of_format: str, tmp_path: Path) -> None:
    name, first, content = sections()[name_of_format]
    path = tmp_path / name
    if name_of_format == "folders":
        for line in content.split():
            (path / line).parent.mkdir(parents=True, exist_ok=True)
            (path / line).touch()
    elif name_of_format == "shards":
        for line in content.split():
            (tmp_path / line).write_text("1")
        with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
            for line in content.split():
                tar.add(tmp_path / line, line)
        first = str(tmp_path / first)
    else:
        path.write_text(content, encoding="utf-8")
    listed, found = read_annotations(path, "auto", "data.train")
    assert found == name_of_format
    assert listed.annotations[0].paths[0] == first
    assert listed.annotations[0].label is not None


@pytest.mark.parametrize("kind", ["motion", "scene"])
def test_made_sets_read_by_the_commands_of_their_configs(kind: str, tmp_path: Path) -> None:
    made = SynthSettings(kind=kind, clips=20, frames=8, size=32, train=0.9, validation=0.05, test=0.05)
    folder = make(tmp_path / kind, made, workers=1)
    lists = ("train.json", "test-answers.csv") if kind == "motion" else ("kinetics_train.csv", "kinetics_test.csv")
    data = DataSettings(
        train=SplitSettings(list=folder / lists[0]),
        test=SplitSettings(list=folder / lists[1]),
        root=folder / "videos",
        labels=folder / "labels.json" if kind == "motion" else None,
    )
    train, test = read_split(data, "train"), read_split(data, "test")
    assert (len(train.videos), len(test.videos)) == (18, 1)
    assert test.videos[0].label is not None
    assert train.direction_sensitive == (kind == "motion")


def test_performance_page_times_peers_and_draws_them(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (command,) = blocks("docs/performance.md", "sh")
    (said,) = typed(command)
    assert all(name in said for name in ("plain", "sttm", "tome", "random", "realised", "merger"))
    assert [path.name for path in tmp_path.iterdir()] == ["bench.png"]
    assert Path("bench.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed) -> None:
    (command,), (code,) = blocks("docs/pictures.md", "sh"), blocks("docs/pictures.md", "python")
    shutil.copy(EXAMPLES / "bin.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    (said,) = typed(command)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/pictures.md", "exec"), names)  # the page is ours
    assert names["result"]["merged"][0]["label"] == "bin" and said.startswith("with merging: bin")
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "clip.png", "clip.html"}


def test_stream_page_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    """On three words after each other; standard input is a pipe, for which the command runs in a process of its own."""
    words = [read(EXAMPLES / f"{name}.mp4", Sampling(16))[0].frames_TCHW for name in ("bin", "blue", "again")]
    encode(torch.cat(words).permute(0, 2, 3, 1).numpy(), tmp_path / "long.mp4")
    with av.open(str(tmp_path / "long.mp4")) as source, av.open(str(tmp_path / "long.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    commands, piped = blocks("docs/stream.md", "sh")
    (said,) = typed(commands.splitlines()[0])
    records = [json.loads(line) for line in said.splitlines()]
    assert len(records) == 5 and records[-1]["end"] > records[0]["end"]
    subprocess.run(["bash", "-c", piped.replace("sttm ", f"{sys.executable} -m sttm ")], check=True)
    (segments,) = typed(commands.splitlines()[1].partition(" >")[0])
    assert sum(json.loads(line)["windows"] for line in segments.splitlines()) == 5
    (code,) = blocks("docs/stream.md", "python")
    exec(compile(code, "docs/stream.md", "exec"), {})  # the page is ours
    assert len(capsys.readouterr().out.splitlines()) == 3
