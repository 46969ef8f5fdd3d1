"""What training starts with: other classes, other numbers of frames, mergers, teachers, random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import VideoMAEConfig, VideoMAEForPreTraining

import sttm
from sttm.config import Settings
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.transforms.processor_config import FAMILIES
from sttm.errors import SttmError
from sttm.patching import api
from sttm.training.build import build_model
from tests.helpers import TINY_SIZES, tiny_model


def settings(model: dict[str, Any], **sections: Any) -> Settings:
    values = {"data": {}, "model": model, "optimizer": {"steps": 10}, "run": {"output": "run"}} | sections
    return Settings.model_validate(values)


@pytest.fixture(params=sorted(FAMILIES))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return sttm.save(tiny_model(request.param), tmp_path / request.param)


@pytest.fixture
def videomae(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return sttm.save(tiny_model("videomae"), tmp_path / "videomae")


def logits(model: Any, frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.randn(2, frames, 3, 32, 32, generator=generator)).logits
    return answer


def test_known_classes_keep_their_rows_in_any_order_and_spelling(saved: Path) -> None:
    model, *_ = build_model(settings({"start": str(saved)}), ["jab", "Left Hook"])
    torch.testing.assert_close(logits(model), logits(sttm.load(saved))[:, [2, 0]])
    assert model.config.id2label == {0: "jab", 1: "Left Hook"} and model.config.num_labels == 2


def test_new_classes_get_a_new_head_and_the_rest_stays(saved: Path) -> None:
    model, *_ = build_model(settings({"start": str(saved)}), ["jab", "kick", "left hook"])
    before = sttm.load(saved).state_dict()
    for name, value in model.state_dict().items():
        if name == "classifier.weight":
            assert not torch.equal(value, before[name])
        elif name != "classifier.bias":
            assert torch.equal(value, before[name]), name


def test_the_seed_decides_the_head(videomae: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        model, *_ = build_model(settings({"start": str(videomae)}, run={"output": "run", "seed": seed}), ["a", "b"])
        weight: torch.Tensor = model.classifier.weight
        return weight

    assert torch.equal(head(3), head(3)) and not torch.equal(head(3), head(4))


def test_more_frames_are_sampled_and_accepted_by_the_model(saved: Path) -> None:
    model, preprocess, *_ = build_model(settings({"start": str(saved), "frames": 8}), ["a", "b"])
    assert preprocess.sampling.num_frames == 8
    assert logits(model, frames=8).shape == (2, 2)
    assert sttm.macs(model) > 1.9 * sttm.macs(sttm.load(saved))


@pytest.mark.parametrize(
    ("family", "table", "prefix", "tokens"),
    [
        ("timesformer", "timesformer.embeddings.time_embeddings", 0, 1),
        ("vivit", "vivit.embeddings.position_embeddings", 1, 16),
    ],
)
def test_learned_positions_are_interpolated_in_time(
    family: str, table: str, prefix: int, tokens: int, tmp_path: Path
) -> None:
    folder = sttm.save(tiny_model(family), tmp_path / family)
    weights = load_file(folder / "model.safetensors")
    weights[table] = torch.randn_like(weights[table])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, *_ = build_model(settings({"start": str(folder), "frames": 6}), ["a", "b"])
    longer, given = model.get_parameter(table)[0], weights[table][0]
    assert torch.equal(longer[:prefix], given[:prefix])
    for token in range(tokens):  # each position in the frame by itself, channel by channel
        rows = given[prefix + token :: tokens].T[None]
        expected = interpolate(rows, 6 if tokens == 1 else 3, mode="linear")[0].T
        torch.testing.assert_close(longer[prefix + token :: tokens], expected)


def test_from_scratch(tmp_path: Path) -> None:
    config = dict(TINY_SIZES, image_size=32, patch_size=8, num_frames=4, intermediate_size=48)
    wanted = settings(
        {"family": "videomae", "config": config, "sampling": "dense", "stride": 3}, merging={"compute": 0.7}
    )
    model, preprocess, teacher, _ = build_model(wanted, ["a", "b"])
    assert teacher is None and model.training and api.plan_of(model).learned
    assert (preprocess.sampling.num_frames, preprocess.sampling.mode, preprocess.sampling.stride) == (4, "dense", 3)
    assert preprocess.crop == (32, 32) and model.config.id2label == {0: "a", 1: "b"}


def test_pictures_are_resized_and_standardised_as_asked(videomae: Path, tmp_path: Path) -> None:
    own = Preprocess.from_folder(videomae)
    asked: dict[str, Any] = {"resize": 64, "mean": (0.6, 0.4, 0.3), "std": (0.3, 0.2, 0.1)}
    _, preprocess, *_ = build_model(settings({"start": str(videomae)} | asked), ["a", "b"])
    assert preprocess == replace(own, **asked) and preprocess != own
    preprocess.to_folder(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_bytes((videomae / "config.json").read_bytes())
    assert Preprocess.from_folder(tmp_path / "saved") == preprocess
    folder = sttm.save(tiny_model("vjepa2"), tmp_path / "vjepa2")
    with pytest.raises(SttmError, match=r"model.resize cannot be set for a V-JEPA 2"):
        build_model(settings({"start": str(folder), "resize": 64}), ["a", "b"])


def test_a_pretraining_checkpoint_is_a_start(tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(
        image_size=32, patch_size=8, num_frames=4, intermediate_size=48, decoder_num_hidden_layers=1,
        decoder_hidden_size=24, decoder_num_attention_heads=2, decoder_intermediate_size=48,
    )  # fmt: skip
    pretrained = VideoMAEForPreTraining(VideoMAEConfig(**TINY_SIZES, **sizes))
    pretrained.save_pretrained(tmp_path / "pretrained")
    model, *_ = build_model(settings({"start": str(tmp_path / "pretrained")}), ["a", "b"])
    name = "videomae.encoder.layer.3.output.dense.weight"
    assert torch.equal(model.state_dict()[name], pretrained.state_dict()[name])


def test_match_frames_spends_what_fewer_frames_cost(saved: Path) -> None:
    wanted = settings({"start": str(saved), "frames": 8}, merging={"match_frames": 6})
    model, *_ = build_model(wanted, ["a", "b"])
    fewer, *_ = build_model(settings({"start": str(saved), "frames": 6}), ["a", "b"])
    before = api.plan_of(model).macs_before
    assert -0.01 * before <= sttm.macs(model) - sttm.macs(fewer) <= 0


def test_mergers_of_the_start_stay_if_they_meet_the_compute(videomae: Path) -> None:
    model = sttm.load(videomae)
    plan = sttm.apply(model, 0.7, learned=True)
    for name, parameter in model.named_parameters():
        if ".merger." in name:
            parameter.data.normal_()
    sttm.save(model, videomae)
    for merging in ({}, {"compute": 0.7}):
        again, *_ = build_model(settings({"start": str(videomae)}, merging=merging), ["jab", "left hook"])
        assert torch.equal(logits(again), logits(model)[:, [2, 0]])
    other, *_ = build_model(settings({"start": str(videomae)}, merging={"compute": 0.5}), ["jab", "left hook"])
    assert api.plan_of(other).compute <= 0.5 < plan.compute
    plain, *_ = build_model(settings({"start": str(videomae)}, merging={"compute": 1}), ["jab", "left hook"])
    assert not api.is_merged(plain)


def test_other_layers_or_windows_than_those_of_the_start_are_merged_again(videomae: Path) -> None:
    model = sttm.load(videomae)
    own = sttm.apply(model, 0.7, learned=True, layers=[1, 3], window=1)
    sttm.save(model, videomae)
    for merging in ({"layers": [1, 3]}, {"window": 1}, {"layers": [1, 3], "window": 1, "selector": "novelty"}):
        same, *_ = build_model(settings({"start": str(videomae)}, merging=merging), ["jab", "left hook"])
        assert api.plan_of(same) == own
    others: list[tuple[dict[str, Any], list[int], int]] = [
        ({"layers": [2]}, [2], 1),
        ({"window": 2}, [0, 1], 1),
        ({"selector": "stride"}, [0, 1], 1),
    ]
    for merging, layers, frames in others:
        other, *_ = build_model(settings({"start": str(videomae)}, merging=merging), ["jab", "left hook"])
        plan = api.plan_of(other)
        assert [m.layer for m in plan.mergers] == layers and plan.mergers[-1].frames == frames


def test_the_teacher_is_the_plain_start(videomae: Path) -> None:
    wanted = settings({"start": str(videomae)}, merging={"compute": 0.7}, distillation={"weight": 0.5})
    model, _, teacher, _ = build_model(wanted, ["jab", "left hook"])
    assert torch.equal(logits(teacher), logits(sttm.load(videomae))[:, [2, 0]])
    assert api.is_merged(model) and not api.is_merged(teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_teacher_of_a_merged_start_is_its_plain_self(videomae: Path) -> None:
    model = sttm.load(videomae)
    sttm.apply(model, 0.7, learned=True)
    sttm.save(model, videomae)
    wanted = settings({"start": str(videomae)}, merging={"compute": 0.7}, distillation={})
    model, _, teacher, _ = build_model(wanted, ["jab", "left hook"])
    assert api.is_merged(model) and not api.is_merged(teacher)


def refused(model: dict[str, Any], classes: tuple[str, ...] = ("a", "b"), **sections: Any) -> str:
    with pytest.raises(sttm.SttmError) as caught:
        build_model(settings(model, **sections), classes)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_what_is_not_valid_is_refused_in_one_sentence(videomae: Path, tmp_path: Path) -> None:
    from_it = {"start": str(videomae)}
    assert "model.frames=5 is not a multiple of 2" in refused({**from_it, "frames": 5})
    assert "model.config.hidden is not a setting" in refused({**from_it, "config": {"hidden": 3}})
    assert "leave that setting" in refused({**from_it, "config": {"hidden_size": 48}})
    assert "has no weights for" in refused({**from_it, "config": {"num_hidden_layers": 5}})
    assert "unknown model.family 'swin'; choose one of videomae" in refused({"family": "swin"})
    assert "match_frames=4 leaves nothing" in refused(from_it, merging={"match_frames": 4})
    assert "has no class a" in refused(from_it, merging={"compute": 0.7}, distillation={})
    assert "no model" in refused({"start": str(tmp_path / "nowhere" / "at" / "all")})


def test_weights_that_are_not_finite_are_refused(videomae: Path) -> None:
    weights = load_file(videomae / "model.safetensors")
    weights["videomae.encoder.layer.1.output.dense.bias"][2] = float("nan")
    save_file(weights, videomae / "model.safetensors", metadata={"format": "pt"})
    assert "not finite (videomae.encoder.layer.1.output.dense.bias)" in refused({"start": str(videomae)})
