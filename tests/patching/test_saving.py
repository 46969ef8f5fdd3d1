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
from safetensors.torch import save_file

import sttm
from sttm.patching import api
from sttm.patching.saving import MERGER, PLAN_FILE, merger_names
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
    assert torch.equal(logits(sttm.load(tmp_path), pixels(model)), logits(model, pixels(model)))
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
def test_what_the_caller_sets_counts_as_for_a_plain_folder(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = merged(family)
    model.save_pretrained(tmp_path)
    read = auto_class(model).from_pretrained
    assert read(tmp_path, attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        read(tmp_path, num_labels=7)
    new = read(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert "classifier.weight | MISMATCH" in caplog.text and MERGER not in caplog.text
    assert new.config.num_labels == 7 and logits(new, pixels(model)).shape[-1] == 7
    assert api.plan_of(new) == api.plan_of(model)
    assert all(torch.equal(new.state_dict()[n], p) for n, p in model.named_parameters() if ".merger." in n)


@families
def test_who_asks_for_the_loading_info_is_told_what_is_missing(family: str, tmp_path: Path) -> None:
    model = merged(family)
    model.save_pretrained(tmp_path)
    _, right = auto_class(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not right["missing_keys"] and not right["mismatched_keys"] and not right["error_msgs"]
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(sttm.SttmError, match="no weights for"):
        auto_class(model).from_pretrained(tmp_path)
    _, told = auto_class(model).from_pretrained(tmp_path, output_loading_info=True)
    assert told["missing_keys"] == set(model.state_dict()) and told["unexpected_keys"] == {"other"}


def test_names_of_mergers_are_told_apart_by_their_block_or_not_at_all() -> None:
    model = merged("vivit")
    own = [key for key in model.state_dict() if MERGER in key]
    published = {key.replace("layers.", "encoder.layer."): key for key in own}
    assert merger_names(model, [*published, "vivit.layers.0.norm.weight"]) == published
    assert merger_names(model, own) == {key: key for key in own}
    assert not merger_names(model, ["encoder.layer.99.merger.grid", "encoder.layer.0.merger.other"])
    assert set(merger_names(model, [*own, *published]).values()) == set(own)
    assert not merger_names(model, [*own, *published]).keys() & published.keys() - set(own)
    model.twin = model.vivit  # two blocks of one number
    assert not merger_names(model, published)


@families
@pytest.mark.parametrize("method", ["sttm", "patchmerger"])
def test_mergers_of_a_model_made_on_the_meta_device_start_as_new_ones(family: str, method: str) -> None:
    model = lively(family)
    sttm.apply(model, compute=0.6, learned=True, method=method)
    wanted = {name: value.clone() for name, value in model.named_buffers() if MERGER in name}
    zero = {name for name, value in model.named_parameters() if MERGER in name and not value.any()}
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(77)
    model.init_weights()
    found = dict(model.named_buffers())
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    parameters = {name: value for name, value in model.named_parameters() if MERGER in name}
    assert {name for name, value in parameters.items() if not value.any()} == zero
    assert not any((value == 77).any() for value in parameters.values())
    assert logits(model, pixels(model)).isfinite().all()
    sttm.remove(model)
    assert "_init_weights" not in vars(model)


def run_without_sttm(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment, check=False
    )


LOAD = """
import sys, transformers
for family, *loaders in {!r}:
    print("family", family, file=sys.stderr)
    for loader in ("AutoConfig", *loaders):
        try:
            getattr(transformers, loader).from_pretrained(sys.argv[1] + "/" + family)
            print(loader, "loaded")
        except Exception as error:
            print(loader, "refused", str(error)[:80])
"""


def test_without_sttm_no_folder_passes_for_the_plain_model(tmp_path: Path) -> None:
    loaders = []
    for family in ONE_EACH:
        model = merged(family)
        model.save_pretrained(tmp_path / family)
        loaders.append((family, auto_class(model).__name__, type(model).__name__))
    outcome = run_without_sttm(LOAD.format(loaders), tmp_path)  # importing transformers takes seconds: all in one
    lines = iter(outcome.stdout.splitlines())
    for config, auto, _ in zip(lines, lines, lines, strict=True):
        assert "refused" in config and "refused" in auto and "model type `sttm`" in config + auto
    # The family's own class reads any config; it warns.
    warned = outcome.stderr.split("family ")[1:]
    assert len(warned) == len(ONE_EACH) and all("model of type `sttm`" in of_family for of_family in warned)


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
