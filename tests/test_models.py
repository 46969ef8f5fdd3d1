"""Names, folders and what can be wrong with them: one sentence each, and nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
)

import sttm
from sttm.patching.saving import PLAN_FILE


def small() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        image_size=32, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=48, decoder_num_hidden_layers=1, decoder_hidden_size=24, decoder_num_attention_heads=2,
        decoder_intermediate_size=48, num_labels=3,
    )  # fmt: skip
    return VideoMAEForVideoClassification(VideoMAEConfig(**sizes)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = small()
    sttm.apply(model, compute=0.7, learned=True)
    return sttm.save(model, tmp_path / "model")


def test_plain_models_are_saved_and_loaded_too(tmp_path: Path) -> None:
    model, pixels = small(), torch.randn(1, 4, 3, 32, 32)
    loaded = sttm.load(sttm.save(model, tmp_path / "plain"))
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)
    assert not (tmp_path / "plain" / PLAN_FILE).exists()
    # Saved over a merged model, a plain one is plain.
    sttm.apply(model, compute=0.7)
    sttm.save(model, tmp_path / "plain")
    sttm.remove(model)
    sttm.save(model, tmp_path / "plain")
    assert torch.equal(sttm.load(tmp_path / "plain")(pixels).logits, model(pixels).logits)


def test_labels_are_kept_in_both_directions(tmp_path: Path) -> None:
    model = small()
    model.config.id2label, model.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    for folder in ("once", "twice"):
        model = sttm.load(sttm.save(model, tmp_path / folder))
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_nothing_is_printed(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sttm.save(sttm.load(saved), tmp_path / "again")
    assert capfd.readouterr() == ("", "")


def test_a_picture_classifier_of_no_known_family_is_named(tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    DeiTForImageClassification(DeiTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path)
    assert "knows a DeiTForImageClassification" in refused(tmp_path)


def refused(name: str | Path) -> str:
    with pytest.raises(sttm.SttmError) as caught:
        sttm.load(name)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_pickles_are_refused_unread(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    assert "pickle" in refused(saved)


def test_what_is_no_model_says_so(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "sttm-motion" in refused("no-such-model")
    assert "hub id" in refused("nobody/no-such-model")
    assert "hub id" in refused("../no/such/folder")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty")
    (saved / "model.safetensors").unlink()
    assert "no weights" in refused(saved)


def test_damaged_files_say_so(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot load" in refused(saved)
    (saved / "model.safetensors").write_bytes(whole)
    plan = json.loads((saved / PLAN_FILE).read_text())
    for broken in ("{", "[]", json.dumps(plan | {"surprise": 1}), json.dumps(plan | {"mergers": [{"layer": 1}]})):
        (saved / PLAN_FILE).write_text(broken)
        assert PLAN_FILE in refused(saved)
    (saved / PLAN_FILE).write_text(json.dumps(plan))
    (saved / "config.json").write_text("{nonsense")
    assert "config.json is not valid JSON" in refused(saved)


def test_missing_weights_are_named(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    lost = next(name for name in weights if name.endswith("merger.motion.map.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, saved / "model.safetensors", {"format": "pt"})
    assert lost in refused(saved)
    # A pre-trained model has no head: random classes would look like predictions.
    VideoMAEForPreTraining(small().config).save_pretrained(tmp_path / "pretrained")
    assert "fine-tuned" in refused(tmp_path / "pretrained")


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sttm.SttmError, match="choose another folder"):
        sttm.save(small(), tmp_path / "file")


def test_a_plan_beside_a_plain_config_is_refused(saved: Path) -> None:
    """As the folders of an older version are, or one whose config was replaced: it would load as the plain model."""
    config = json.loads((saved / "config.json").read_text())
    plain = config["backbone_config"] | {"model_type": config["backbone_type"]}
    (saved / "config.json").write_text(json.dumps(plain))
    assert PLAN_FILE in refused(saved)


def test_a_model_without_a_head_loads_and_classifies_nothing(tmp_path: Path) -> None:
    from sttm import models
    from sttm.calibration import calibrate
    from tests.helpers import lively, pixels

    model = lively("vjepa2-features")
    folder = sttm.save(model, tmp_path / "features")
    assert type(sttm.load(folder)) is type(model)
    with pytest.raises(sttm.SttmError, match="VJEPA2Model, which has no head that classifies"):
        models.load_with_preprocess(folder)
    with pytest.raises(sttm.SttmError, match="compares answers, and a VJEPA2Model has no head"):
        calibrate(model, pixels(model))
    with pytest.raises(sttm.SttmError, match="VJEPA2Model, which has no head"):
        sttm.predict([folder], model=str(folder))
