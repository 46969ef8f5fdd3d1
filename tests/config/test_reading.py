"""Settings: read, inherited, overridden, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

import sttm
from sttm.config import dump, load, parse_views
from sttm.config.reading import find, recipes
from tests.helpers import ROOT

BASE = """
data: {root: videos, train: {list: a.csv}, validation: {list: b.csv}}
model: {start: sttm-motion-plain}
optimizer: {epochs: 3}
run: {output: runs/a}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path / "base.yaml"


def test_a_config_changes_the_one_it_inherits_from(base: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    (deep.parent / "middle.yaml").write_text("inherit: ../base.yaml\noptimizer: {lr: 2e-3}\nmerging: {compute: 0.5}")
    (deep / "top.yaml").write_text("inherit: ../middle.yaml\nmerging: {compute: 0.4}\ndata: {validation: null}")
    settings = load(deep / "top.yaml")
    assert (settings.optimizer.epochs, settings.optimizer.lr, settings.merging.compute) == (3, 2e-3, 0.4)
    assert settings.data.validation is None and settings.data.root == Path("videos")


def test_overrides_are_yaml(base: Path) -> None:
    sets = ["optimizer.lr=1e-3", "data.without=[a, b]", "optimizer.epochs=null", "optimizer.steps=5", "run.output=x=y"]
    settings = load(base, sets)
    assert settings.optimizer.lr == 1e-3 and settings.data.without == ("a", "b")
    assert (settings.optimizer.epochs, settings.optimizer.steps) == (None, 5)
    assert settings.run.output == Path("x=y")


def test_what_is_dumped_is_read_back(base: Path, tmp_path: Path) -> None:
    settings = load(base, ["data.train.where={view: [a, b]}", "distillation.weight=0.3", "merging.compute=0.5"])
    (tmp_path / "again.yaml").write_text(dump(settings))
    assert load(tmp_path / "again.yaml") == settings


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("optimizer.lrr=1", "no setting optimizer.lrr; did you mean lr?"),
        ("data.trian.list=a", "no setting data.trian; did you mean train?"),
        ("data.train.lits=a", "no setting data.train.lits; did you mean list?"),
        ("zzz=1", "no setting zzz"),
        ("optimizer.lr=0", "optimizer.lr=0: input should be greater than 0"),
        ("optimizer.lr=.nan", "optimizer.lr=nan"),
        ("optimizer.lr=fast", "optimizer.lr='fast'"),
        ("optimizer.steps=5", "give epochs or steps"),
        ("optimizer.min_lr=1", "min_lr=1.0 is above lr=0.0001"),
        ("model.family=vivit", "one of the two only"),
        ("model.stride=4", "stride belongs to sampling: dense"),
        ("merging={compute: 0.5, match_frames: 8}", "both set the compute target"),
        ("merging.compute=1.2", "merging.compute=1.2"),
        ("merging.warmup_steps=5", "warmup_steps trains only the mergers"),
        ("merging={compute: 0.5, warmup_steps: 5, motion_start: 0.5}", "give one of them"),
        ("merging.motion_start=0.5", "motion_start needs the motion feature"),
        ("merging={compute: 0.5, motion: false, motion_start: 0.5}", "motion_start needs the motion feature"),
        ("merging={compute: 0.5, method: tome, motion_start: 0.5}", "motion_start needs the motion feature"),
        ("merging={compute: 0.5, motion_start: 1}", "merging.motion_start=1"),
        ("augment.crop_area=[1, 0.5]", "augment.crop_area"),
        ("augment.shift=2", "shift moves the centre crop; set crop: centre too"),
        ("model.mean=[0.5, 0.5, 0.5]", "mean and std belong together"),
        ("model.std=[1, 1, 0]", "model.std"),
        ("augment.repeats=3", "not a multiple of augment.repeats=3"),
        ("optimizer.micro_batch=5", "not a multiple of micro_batch=5"),
        ("distillation.weight=0.5", "distillation from the plain model needs a merged one"),
        ("evaluation.views=2x2", "views=2x2 is not TxS"),
        ("optimizer={name: sgd, epochs: null, steps: 5}", "optimizer.name='sgd': input should be 'adamw' or 'muon'"),
        ("optimizer.muon_lr=0.1", "belong to name: muon"),
        ("optimizer.muon_weight_decay=0.1", "belong to name: muon"),
        ("run.output=null", "run.output=None"),
        ("data=5", "data=5"),
        ("model", "--set model is not key=value"),
        ("a..b=1", "is not key=value"),
        ("model.start={", "the value of --set model.start is not YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence(base: Path, override: str, part: str) -> None:
    with pytest.raises(sttm.SttmError) as caught:
        load(base, [override])
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_muon_does_not_shard(base: Path) -> None:
    sets = ["optimizer.name=muon", "optimizer.muon_lr=0.1", "optimizer.muon_weight_decay=0.1"]
    assert load(base, sets).optimizer.muon_lr == 0.1
    with pytest.raises(sttm.SttmError) as caught:
        load(base, [*sets, "run.strategy=fsdp"])
    sentence = str(caught.value)
    assert "optimizer.name=muon needs whole matrices and run.strategy=fsdp shards them" in sentence
    assert sentence.endswith("use run.strategy=ddp, or optimizer.name=adamw") and "\n" not in sentence
    for allowed in (["run.strategy=ddp", *sets], ["run.strategy=fsdp"]):  # the advice works
        load(base, allowed)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    def refused(text: bytes) -> str:
        (tmp_path / "c.yaml").write_bytes(text)
        with pytest.raises(sttm.SttmError) as caught:
            load(tmp_path / "c.yaml")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not YAML" in refused(b"a: [1")
    assert "holds no settings" in refused(b"- 1")
    assert "it is not text" in refused(b"\xff\xfe\x00")
    assert "inherits from itself" in refused(b"inherit: c.yaml")
    assert "data is missing" in refused(b"{}")
    assert "No such file" in refused(b"inherit: nowhere.yaml")


@pytest.mark.parametrize("name", ["motion-sttm", "motion-sttm.yaml", "ssv2/videomae-b-sttm"])
def test_a_recipe_is_read_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, and with what it inherits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "motion-sttm").mkdir()  # a folder of that name, say of a run, is no config
    path = ROOT / "configs" / f"{name.removesuffix('.yaml')}.yaml"
    assert "inherit" in path.read_text()
    assert load(name) == load(path) and load(name, ["optimizer.lr=0.5"]).optimizer.lr == 0.5


def test_recipes_are_all_that_can_run() -> None:
    runs = [path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml"]
    assert sorted(recipes().values()) == sorted(runs)
    assert all(find(name) == path for name, path in recipes().items())


def test_recipes_of_an_installed_package_lie_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sttm" / "configs" / "set").mkdir(parents=True)
    (tmp_path / "sttm" / "configs" / "set" / "one.yaml").write_text(BASE)
    monkeypatch.setattr("sttm.config.reading.__file__", str(tmp_path / "sttm" / "config" / "reading.py"))
    assert recipes() == {"set/one": tmp_path / "sttm" / "configs" / "set" / "one.yaml"}


def test_a_file_comes_before_a_recipe(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    base.rename("scene.yaml")
    assert load("scene.yaml").data.root == Path("videos") and load("scene").data.root != Path("videos")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ut_interacton", "did you mean ut_interaction?"),
        ("videomae-b-sttm", "did you mean ssv2/videomae-b-sttm?"),
        ("configs/ssv2/vivit.yaml", "did you mean ssv2/vivit?"),
        ("ssv2/base", "did you mean ssv2/"),
        ("???", "`sttm configs` lists the recipes"),
    ],
)
def test_neither_a_file_nor_a_recipe(name: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sttm.SttmError) as caught:
        load(name)
    assert str(caught.value).startswith(f"{name} is neither a file nor a recipe; {advice}")
    assert "\n" not in str(caught.value)


def test_nothing_in_a_config_is_executed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: !!python/object/apply:os.mkdir [made]")
    with pytest.raises(sttm.SttmError, match="is not YAML"):
        load(tmp_path / "c.yaml")
    assert not Path("made").exists()


def test_views() -> None:
    assert parse_views("5x3") == (5, 3)
    for text in ("5", "0x1", "5x2", "ax1", "5x", "-1x1"):
        with pytest.raises(sttm.SttmError, match="is not TxS"):
            parse_views(text)
