"""The tensors that checkpoints on the hub hold besides those of the classifier, or in place of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    TimesformerModel,
    VideoMAEForPreTraining,
    VideoMAEModel,
    VivitModel,
    VJEPA2Model,
)

import sttm
from sttm.models import quiet
from tests.helpers import lively, logits, pixels

Tensors = dict[str, Tensor]


def pretraining(model: Any) -> Tensors:
    """Return what a pre-training VideoMAE holds besides the encoder."""
    config = type(model.config)(**model.config.to_dict() | {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 48})
    return {n: t for n, t in VideoMAEForPreTraining(config).state_dict().items() if not n.startswith("videomae.")}


#: Tensors that are added to a saved classifier; it answers as before.
ADDED: dict[str, tuple[str, Callable[[Any], Tensors]]] = {
    "videomae with a decoder": ("videomae", pretraining),
    "videomae with position buffers": (
        "videomae",
        lambda model: {"videomae.embeddings.position_embeddings": model.videomae.embeddings.position_embeddings},
    ),
    "vivit with a pooler": (
        "vivit",
        lambda model: {"vivit.pooler.dense.weight": torch.zeros(48, 48), "vivit.pooler.dense.bias": torch.zeros(48)},
    ),
    "timesformer with position ids": (
        "timesformer-divided",
        lambda model: {"timesformer.embeddings.position_ids": torch.arange(17)[None]},
    ),
    "vjepa2 with a predictor": ("vjepa2", lambda model: {}),
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save a model as transformers does, and change its tensors."""

    def saved(model: Any, added: Tensors | None = None, without: str = "nothing") -> Path:
        with quiet():
            model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file) | (added or {})
        save_file({name: value for name, value in tensors.items() if without not in name}, file, {"format": "pt"})
        return tmp_path

    return saved


@pytest.mark.parametrize("what", ADDED)
def test_tensors_that_the_classifier_does_not_use(what: str, save: Callable[..., Path]) -> None:
    family, added = ADDED[what]
    model = lively(family)
    again, clips = sttm.load(save(model, added(model))), pixels(model)
    torch.testing.assert_close(logits(again, clips), logits(model, clips))


def test_a_classifier_needs_no_predictor(save: Callable[..., Path]) -> None:
    model = lively("vjepa2")
    again, clips = sttm.load(save(model, without="predictor.")), pixels(model)
    torch.testing.assert_close(logits(again, clips), logits(model, clips))


def test_older_names_of_videomae_count(save: Callable[..., Path]) -> None:
    """Folders on the hub name the biases q_bias and v_bias, as transformers 5 still writes them."""
    model = lively("videomae")
    folder = save(model)
    tensors = load_file(folder / "model.safetensors")
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in tensors
    torch.testing.assert_close(logits(sttm.load(folder), pixels(model)), logits(model, pixels(model)))


@pytest.mark.parametrize("kind", [VideoMAEForPreTraining, VideoMAEModel, VivitModel, TimesformerModel, VJEPA2Model])
def test_a_model_without_a_head_says_so(kind: Any, save: Callable[..., Path], sttm: Any, clips: Path) -> None:
    family = {"VideoMAE": "videomae", "Vivit": "vivit", "Timesformer": "timesformer-divided", "VJEPA2": "vjepa2"}
    name = next(name for prefix, name in family.items() if kind.__name__.startswith(prefix))
    config = lively(name).config
    config.decoder_num_hidden_layers, config.decoder_hidden_size = 1, 48
    folder = save(kind(config))
    outcome = sttm("predict", clips / "a.mp4", "--model", folder)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "no head that classifies" in outcome.err, outcome.err


def test_positions_that_the_model_would_not_compute_are_not_dropped(save: Callable[..., Path]) -> None:
    model = lively("videomae")
    trained = model.videomae.embeddings.position_embeddings + 0.1
    with pytest.raises(sttm.SttmError, match=r"no place to \(videomae.embeddings.position_embeddings\)"):
        sttm.load(save(model, {"videomae.embeddings.position_embeddings": trained}))


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_refused_unread(whole: bool, save: Callable[..., Path], tmp_path: Path) -> None:
    """Where peft is installed, transformers would load the model that the adapter names, from anywhere."""
    folder = save(lively("videomae")) if whole else tmp_path
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model", "peft_type": "LORA"}')
    with pytest.raises(sttm.SttmError, match=r"holds an adapter of PEFT .* merge_and_unload") as caught:
        sttm.load(folder)
    assert "\n" not in str(caught.value)
