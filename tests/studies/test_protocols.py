"""The protocols from scratch and fine-tuned: whole commands on random clips, interrupted and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.config import load
from sttm.config.sections import DataSettings
from sttm.errors import SttmError
from sttm.training.build import build_model

ARGUMENTS = ["run", "--methods", "plain,sttm,tome", "--compute", "0.35", "--seeds", "0,1", "--epochs", "1"]
PAGE = "# Evidence\n\n<!-- results/scratch/table.md -->\n\nNo runs yet.\n\n<!-- end -->\n"


@pytest.fixture
def protocols(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with six random clips a split, and results of its own."""
    data, module, runs = study("harness.data"), study("harness.protocols"), study("harness.runs")

    def clips(dataset: str, split: str, edge: int) -> Any:
        pixels = np.random.default_rng(0).integers(256, size=(6, 16, 3, edge, edge), dtype=np.uint8)
        mean, std = (torch.full((1, 1, 1), level) for level in (128.0, 64.0))
        return data.ClipSet(pixels, torch.arange(6) % 3, ("a", "b", "c"), mean, std)

    monkeypatch.setattr(module, "clip_set", clips)
    monkeypatch.setattr(module, "SHAPE", study("harness.training").Shape(16, 48, 8, 32, 4, 2))
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "evidence.md").write_text(PAGE)
    return module


def command(protocols: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["scratch.py", *arguments])
    protocols.main(protocols.Protocol("scratch", "From scratch.", protocols.from_scratch))


def test_an_interrupted_study_goes_on_where_it_stopped(
    protocols: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "results" / "scratch", protocols.work
    made: list[tuple[str, int]] = []

    def work(protocol: Any, run: Any, limit: int | None = None) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((run.method, run.seed))
        return whole(protocol, run, limit)

    monkeypatch.setattr(protocols, "work", work)
    with pytest.raises(KeyboardInterrupt):
        command(protocols, monkeypatch, *ARGUMENTS)
    first = (folder / "rows.jsonl").read_bytes()
    assert made == [("plain", 0), ("sttm", 0)] and first.count(b"\n") == 2
    with (folder / "rows.jsonl").open("ab") as file:  # as if it had been killed within a line
        file.write(b'{"study": "scr')
    made[:] = [("", 0), ("", 0), ("", 0)]
    command(protocols, monkeypatch, *ARGUMENTS)
    assert made[3:] == [("tome", 0), ("plain", 1), ("sttm", 1), ("tome", 1)]
    assert (folder / "rows.jsonl").read_bytes().startswith(first)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    in_order = [(method, seed) for seed in (0, 1) for method in ("plain", "sttm", "tome")]
    assert [(row["method"], row["seed"]) for row in rows] == in_order
    assert len(list((folder / "answers").glob("*.npz"))) == 6
    assert all(protocols.plain_file("scratch", "grid_words_lips", seed, 1).exists() for seed in (0, 1))
    for row in rows:
        assert len(row["curve"]) == 1 and row["steps"] == 1 and row["learned"] == (row["method"] == "sttm")
    table = (folder / "table.md").read_text()
    assert "| **sttm** |" in table and "| plain |" in table and (folder / "curves.png").exists()
    assert table in (tmp_path / "docs" / "evidence.md").read_text()
    made.clear()
    command(protocols, monkeypatch, *ARGUMENTS)
    assert not made


def test_how_pictures_are_prepared_stands_in_a_table_of_its_own(
    protocols: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, page = tmp_path / "results" / "scratch", tmp_path / "docs" / "evidence.md"
    page.write_text(PAGE + "\n" + PAGE.replace("table.md", "preparations.md"))
    for datasets in ("grid_words", "grid_words_lips,avletters"):
        command(protocols, monkeypatch, *ARGUMENTS[:2], "plain", *ARGUMENTS[3:], "--datasets", datasets)
        written = sorted(path.name for path in folder.glob("*.md"))
        assert written == ["preparations.md", "table.md"][: 1 + ("," in datasets)]
    shown = [(folder / name).read_text() for name in written]
    found = [[line for line in table.splitlines() if line.startswith("###")] for table in shown]
    assert found == [
        ["### grid_words, muon, compute 1"],
        ["### grid_words_lips, muon, compute 1", "### avletters, muon, compute 1"],
    ]
    assert all(table in page.read_text() for table in shown)


@pytest.mark.parametrize(
    ("name", "shown"), [("scratch", ["", "late-motion"]), ("finetune", ["late-motion", "early-motion"])]
)
def test_bold_is_what_sttm_train_does_by_default(
    name: str, shown: list[str], protocols: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["x.py", *ARGUMENTS[:2], "plain,sttm", *ARGUMENTS[3:], "--variants", ",late-motion"]
    )
    protocols.main(protocols.Protocol(name, "", protocols.from_scratch))
    table = (tmp_path / "results" / name / "table.md").read_text()
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if "sttm |" in line or "sttm** |" in line
    ]
    (bold,), (other,) = ([line for line in lines if line[0] == cell] for cell in ("**sttm**", "sttm"))
    assert [bold[1], other[1]] == shown
    # The others are compared with it, and it is with plain alone.
    assert bold[-1] == "" and bold[-2] and other[-1]


def test_a_trial_writes_no_row(protocols: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    command(protocols, monkeypatch, *ARGUMENTS[:2], "sttm", *ARGUMENTS[3:5], "--variants", "no-motion", "--epochs", "1",
            "--optimizer", "adamw", "--limit", "3", "--seeds", "0")  # fmt: skip
    assert "'method': 'sttm'" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_controls_and_methods_with_the_motion_feature_are_trained_alike(
    protocols: Any, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = study("harness.controls").CONTROLS
    command(protocols, monkeypatch, "run", "--methods", ",".join(["plain", "sttm", "tome", *controls]), "--variants",
            ",motion", "--compute", "0.5", "--seeds", "0", "--epochs", "1")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "results" / "scratch" / "rows.jsonl").read_text().splitlines()]
    found = {(row["method"], row["variant"]): row for row in rows}
    plain = found["plain", ""]["macs"]
    assert found.keys() == {("plain", ""), ("plain", "motion"), ("sttm", ""), ("tome", ""), ("tome", "motion"),
                            *((name, "") for name in controls)}  # fmt: skip
    assert all(0.3 < found[name, ""]["macs"] / plain < 0.7 for name in controls)
    assert found["plain", "motion"]["macs"] > plain and found["plain", "motion"]["learned"]
    assert found["tome", "motion"]["macs"] == pytest.approx(0.5 * plain, rel=0.02)
    # What others are compared with is plain without the feature.
    lines = (tmp_path / "results" / "scratch" / "table.md").read_text().splitlines()
    (twin,), (other,) = (
        [line for line in lines if line.startswith(f"| plain | {name}")] for name in (" |", "motion |")
    )
    delta = 100 * (found["plain", "motion"]["top1"] - found["plain", ""]["top1"])
    assert f"| {plain / 1e9:.4f} |" in twin and "p " not in twin and f"| {delta:+.1f}, p " in other


def test_late_motion_starts_half_way(protocols: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = study("harness.runs")
    seen: dict[str, list[bool]] = {}
    real = protocols.predict

    def predict(model: Any, *others: Any) -> Any:
        maps = [value for name, value in model.named_parameters() if name.endswith("motion.map.weight")]
        seen[variant].append(all(bool(value.any()) for value in maps))
        return real(model, *others)

    monkeypatch.setattr(protocols, "predict", predict)
    monkeypatch.setattr(protocols, "BATCH", 6)
    for variant in ("", "late-motion"):
        seen[variant] = []
        run = runs.Run("scratch", "grid_words", "sttm", 0.35, variant, frames=16, epochs=4.0)
        protocols.work(protocols.Protocol("scratch", "", protocols.from_scratch), run, limit=6)
    # After each of the four epochs, and at the end.
    assert seen == {"": [True] * 5, "late-motion": [False, False, True, True, True]}


@pytest.mark.parametrize("compute", [0.62, 0.35])
def test_a_control_is_the_nearest_to_the_budget_and_changes_one_thing(study: Any, compute: float) -> None:
    controls, training = study("harness.controls"), study("harness.training")
    shape = study("harness.protocols").SHAPE
    plain = sttm.macs(training.new_model(shape, 26))
    for name in controls.CONTROLS:
        found = controls.control_shape(name, shape, compute)
        assert abs(sttm.macs(training.new_model(found, 26)) / plain - compute) < 0.16, name
        changed = {key for key in vars(shape) if getattr(shape, key) != getattr(found, key)}
        assert changed <= {"larger patches": {"patch", "edge"}, "narrower": {"width", "heads"}, "shallower": {"depth"},
                           "fewer frames": {"frames"}, "smaller pictures": {"edge"}}[name]  # fmt: skip
    with pytest.raises(SttmError, match="unknown control 'wider'"):
        controls.control_shape("wider", shape, 0.5)


def test_fine_tuning_starts_from_the_backbone_of_the_seed(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune, pretraining, training = study("finetune"), study("harness.pretraining"), study("harness.training")
    shape = study("harness.protocols").SHAPE
    torch.manual_seed(7)
    backbone = training.new_model(shape, 1).videomae.state_dict()
    monkeypatch.setattr(pretraining, "pretrained", lambda seed, shape, scale: backbone)
    model = finetune.start(0, 5, shape)
    assert all(torch.equal(value, backbone[key]) for key, value in model.videomae.state_dict().items())
    assert model.classifier.out_features == 5


def test_a_run_is_a_training_config_of_the_same_cost_and_pixels(
    protocols: Any, study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs, data = study("harness.runs"), study("harness.data")
    monkeypatch.setattr(protocols, "data_settings", lambda name: DataSettings())
    levels_TCHW = torch.randint(0, 256, (16, 3, 70, 60), dtype=torch.uint8)
    for method, compute in (("plain", 1.0), ("sttm", 0.35), ("tome", 0.62)):
        run = runs.Run("scratch", "grid_words_lips", method, compute, frames=16, seed=1, epochs=16.0)
        settings = protocols.settings_of(run)
        model, preprocess, *_ = build_model(settings, ("a", "b", "c"))
        ours = protocols.from_scratch(1, 3, protocols.SHAPE)
        study("harness.variants").put_in(ours, method, compute, "")
        assert sttm.macs(model) == sttm.macs(ours)
        cut_TCHW = data.square(48, 16, 0.5).resize_and_crop(levels_TCHW)[0]
        torch.testing.assert_close(preprocess(levels_TCHW)[0], (cut_TCHW.float() - 128) / 64)
        assert settings.optimizer.epochs == 16 and settings.augment.shift == data.MAX_SHIFT
        assert settings.optimizer.name == "muon" and settings.merging.motion_start is None
    # The command prints the config of one run, which is read back.
    one = ["config", "--datasets", "grid_words_lips", "--methods", "sttm", "--compute", "0.35", "--seeds", "1"]
    command(protocols, monkeypatch, *one, "--variants", "late-motion")
    (tmp_path / "late.yaml").write_text(capsys.readouterr().out)
    late = load(tmp_path / "late.yaml")
    assert late.merging.motion_start == 0.5 and late.model == protocols.settings_of(replace(run, compute=0.35)).model
    with pytest.raises(SystemExit, match="give one method, one seed"):
        command(protocols, monkeypatch, *one, "--variants", ",no-motion")
    with pytest.raises(SttmError, match="no settings for grid_words_moving-sttm; choose another"):
        protocols.settings_of(replace(run, dataset="grid_words_moving", method="sttm"))
