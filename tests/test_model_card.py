"""The model card of a saved folder: metadata for the hub, what was merged, and nothing of the user's overwritten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData

import sttm
from sttm.backbones import backbone_of
from sttm.model_card import CARD, origin
from sttm.models import resolve
from tests.helpers import ALL, lively, logits, pixels


def save(folder: Path, compute: float = 0.6, family: str = "videomae") -> Path:
    """Save a small model, merged below a compute of 1; return its card."""
    model = lively(family)
    if compute < 1:
        sttm.apply(model, compute)
    return sttm.save(model, folder) / CARD


def read(card: Path) -> Any:
    return ModelCard.load(card)


@pytest.mark.parametrize("family", ALL)
def test_a_card_says_what_was_merged(family: str, tmp_path: Path) -> None:
    card, plain = read(save(tmp_path / "merged", 0.6, family)), read(save(tmp_path / "plain", 1, family))
    model = sttm.load(tmp_path / "merged")
    plan, data = sttm.patching.api.plan_of(model), card.data
    libraries = [card_data.to_dict()["library_name"] for card_data in (data, plain.data)]
    assert isinstance(data, ModelCardData) and libraries == ["sttm", "transformers"]
    tasks = {"video-classification", "image-classification", "image-feature-extraction", "feature-extraction"}
    assert data.pipeline_tag == plain.data.pipeline_tag and data.pipeline_tag in tasks
    assert ("classification" in data.pipeline_tag) == backbone_of(model).classifies(model)
    assert {plan.family.lower(), "token-merging", "sttm"} == set(data.tags or ())
    assert data.base_model is None and data.license is None and "eval_results" not in data.to_dict()
    for fact in (f"`{plan.method}`", f"{plan.compute:.3f}", str(plan), str(plan.clip_shape), type(model).__name__):
        assert fact in card.text, fact
    assert f"{plan.macs_after / 1e9:.3f}" in card.text and "Nothing is merged" in plain.text


def test_what_it_says_of_loading_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = read(save(tmp_path / "FOLDER"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    assert len(code.strip().splitlines()) <= 3
    names: dict[str, Any] = {}
    exec(compile(code, CARD, "exec"), names)  # the card is ours
    model = lively("videomae")
    sttm.apply(model, 0.6)
    assert torch.equal(logits(names["model"], pixels(model)), logits(model, pixels(model)))


def test_a_card_of_the_user_stays_until_asked(tmp_path: Path) -> None:
    card, own = save(tmp_path, compute=0.6), "# My model\n\nTrained on my videos.\n"
    first = card.read_text()
    assert save(tmp_path, compute=0.5) == card and card.read_text() != first  # ours: written again
    edited = card.read_text().replace("## Limits", "## Accuracy\n\n91 %\n\n## Limits")
    for text in (own, edited, edited.rstrip("\n"), "", "\xff"):
        card.write_text(text, encoding="latin-1")
        save(tmp_path, compute=0.7)
        assert card.read_text(encoding="latin-1") == text
    sttm.save(lively("videomae"), tmp_path, overwrite_card=True)
    assert "Nothing is merged" in card.read_text()


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("MCG-NJU/videomae-base", "MCG-NJU/videomae-base"),
        ("/c/hub/models--MCG-NJU--videomae-base/snapshots/0f1/", "MCG-NJU/videomae-base"),
        ("/home/someone/secret-project", None),
        ("./runs", None),
        ("", None),
    ],
)
def test_only_an_id_of_the_hub_is_a_base(name: str, base: str | None) -> None:
    assert origin(name) == (base, None)


def test_base_and_licence_go_on_from_card_to_card(tmp_path: Path) -> None:
    model = sttm.load("sttm-words-plain")
    sttm.apply(model, 0.6)
    sttm.save(model, tmp_path / "first")
    found = read(tmp_path / "first" / CARD)
    assert found.data.license == origin(str(resolve("sttm-words-plain")))[1] == "cc-by-4.0"
    card = tmp_path / "first" / CARD
    card.write_text("---\nbase_model: [someone/base]\nlicense: cc-by-nc-4.0\n---\n# Mine\n")
    sttm.save(sttm.load(tmp_path / "first"), tmp_path / "second")
    found = read(tmp_path / "second" / CARD)
    assert (found.data.base_model, found.data.license) == ("someone/base", "cc-by-nc-4.0")
    assert "huggingface.co/someone/base" in found.text
    for broken in ("---\nlicense: [\n---\n", "---\n- a list\n---\n", "no metadata"):
        card.write_text(broken)
        assert origin(str(tmp_path / "first")) == (None, None)


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassification

    sizes: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(sttm.SttmError, match="knows a DeiT"):
        sttm.save(DeiTForImageClassification(DeiTConfig(image_size=8, patch_size=4, **sizes)), tmp_path / "deit")
    assert not (tmp_path / "deit").exists()
