"""Folders of merged models, as transformers, its hub and its auto classes write and read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sttm
from sttm.patching import api
from sttm.patching.saving import PLAN_FILE
from tests.helpers import MORE, ONE_EACH, auto_class, lively, logits, pixels, stir

families = pytest.mark.parametrize("family", ONE_EACH)


def merged(family: str, learned: bool = True) -> Any:
    model = lively(family)
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    return model


@families
@pytest.mark.parametrize("learned", [False, True])
def test_auto_classes_give_back_the_merged_model(family: str, learned: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    model = merged(family, learned)
    classifiers = auto_class(model)
    model.save_pretrained(tmp_path)
    loaded = classifiers.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and api.plan_of(loaded) == api.plan_of(model)
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    assert AutoConfig.from_pretrained(tmp_path).inner().id2label == model.config.id2label
    half = classifiers.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    base = AutoModel.from_pretrained(tmp_path).eval()
    options = {"skip_predictor": True} if family == "vjepa2" else {}
    with torch.no_grad():
        expected = getattr(model, model.base_model_prefix)(pixels(model), **options)[0]
        assert torch.equal(base(pixels(model), **options)[0], expected)


@pytest.mark.parametrize("family", [name for name in MORE if type(lively(name)).__name__.endswith("Model")])
def test_auto_model_gives_back_merged_features(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = merged(family)
    model.save_pretrained(tmp_path)
    if family == "xclip":  # whose tower no auto class knows
        assert torch.equal(logits(sttm.load(tmp_path), pixels(model)), logits(model, pixels(model)))
        return
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and api.plan_of(loaded) == api.plan_of(model)
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))


@families
def test_what_the_caller_sets_counts_as_for_a_plain_folder(family: str, tmp_path: Path) -> None:
    model = merged(family)
    model.save_pretrained(tmp_path)
    read = auto_class(model).from_pretrained
    assert read(tmp_path, attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        read(tmp_path, num_labels=7)
    new = read(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert new.config.num_labels == 7 and logits(new, pixels(model)).shape[-1] == 7
    assert api.plan_of(new) == api.plan_of(model)
    assert all(torch.equal(new.state_dict()[n], p) for n, p in model.named_parameters() if ".merger." in n)


def run_without_sttm(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment, check=False
    )


LOAD = """
import sys, transformers
for loader in ("AutoConfig", {!r}, {!r}):
    try:
        getattr(transformers, loader).from_pretrained(sys.argv[1])
        print(loader, "loaded")
    except Exception as error:
        print(loader, "refused", str(error)[:80])
"""


@families
def test_without_sttm_no_folder_passes_for_the_plain_model(family: str, tmp_path: Path) -> None:
    model = merged(family)
    model.save_pretrained(tmp_path)
    outcome = run_without_sttm(LOAD.format(auto_class(model).__name__, type(model).__name__), tmp_path)
    config, auto, _ = outcome.stdout.splitlines()
    assert "refused" in config and "refused" in auto and "model type `sttm`" in config + auto
    # The family's own class reads any config; it warns.
    assert "model of type `sttm`" in outcome.stderr


@pytest.mark.parametrize("order", ["import sttm, transformers", "import transformers, sttm"])
def test_one_import_is_enough(order: str, tmp_path: Path) -> None:
    merged("videomae").save_pretrained(tmp_path)
    code = f"""
import sys
{order}
assert "torch" not in sys.modules or "transformers" in "{order}"
from transformers import AutoModelForVideoClassification
model = AutoModelForVideoClassification.from_pretrained(sys.argv[1])
assert sttm.macs(model) == model._sttm.plan.macs_after
print("merged")
"""
    outcome = run_without_sttm(code, tmp_path)
    assert outcome.stdout.endswith("merged\n"), outcome.stderr


def test_a_folder_without_its_plan_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForVideoClassification

    merged("videomae").save_pretrained(tmp_path)
    (tmp_path / PLAN_FILE).unlink()
    with pytest.raises(sttm.SttmError, match=PLAN_FILE):
        AutoModelForVideoClassification.from_pretrained(tmp_path)


def test_pushed_folders_are_saved_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded, with the network replaced by a copy of the folder."""
    model = merged("videomae")
    pushed: dict[str, str] = {}

    def upload(working_dir: str, *_: Any, **__: Any) -> None:
        pushed.update({path.name: path.read_text() for path in Path(working_dir).glob("*.json")})

    class Hub:
        def create_repo(self, name: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": name})

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr(type(model), "_upload_modified_files", staticmethod(upload))
    model.push_to_hub("someone/merged")
    assert json.loads(pushed["config.json"])["model_type"] == "sttm" and PLAN_FILE in pushed
    pushed.clear()
    model.save_pretrained(tmp_path / "merged", push_to_hub=True, repo_id="someone/merged")
    assert json.loads(pushed["config.json"])["model_type"] == "sttm" and PLAN_FILE in pushed


@families
def test_a_plan_of_no_mergers_is_saved_as_the_plain_model(family: str, tmp_path: Path) -> None:
    model = lively(family)
    sttm.apply(model, compute=1)
    for folder, save in ((tmp_path / "own", lambda to: sttm.save(model, to)), (tmp_path / "hf", model.save_pretrained)):
        save(folder)
        assert not (folder / PLAN_FILE).exists()
        assert json.loads((folder / "config.json").read_text())["model_type"] == model.config.model_type
        loaded = sttm.load(folder)
        assert not api.is_merged(loaded)
        assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))
    model_before = merged(family)  # what lay in the folder before, a merged model
    sttm.save(model_before, tmp_path / "own")
    sttm.save(model, tmp_path / "own")
    assert not (tmp_path / "own" / PLAN_FILE).exists()
