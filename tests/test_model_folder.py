"""Folders that are wrong in one place: each is refused in a sentence, or answers exactly as the right one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification

import sttm
from sttm import models
from sttm.backbones.config_check import depth
from sttm.evaluation.inference import labels_of, scores
from sttm.model_folder import weight_files
from sttm.patching.saving import PLAN_FILE
from tests.helpers import FAMILIES, lively, logits, pixels

Answer = tuple[list[str], torch.Tensor]


def answer(folder: Path) -> Answer:
    """Return the classes of a folder's model, and its scores for one clip of noise."""
    model, preprocess = models.load_with_preprocess(folder)
    noise = torch.Generator().manual_seed(0)
    frames_TCHW = torch.randint(0, 256, (8, 3, 48, 64), generator=noise, dtype=torch.uint8)
    return labels_of(model), scores(model, [preprocess(frames_TCHW)], "probabilities", 8, torch.float32)[0]


@pytest.fixture(scope="module")
def right(small_model: Path) -> Answer:
    return answer(small_model)


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the small plain model."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def merged_model(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = sttm.load(small_model)
    sttm.apply(model, 0.7, learned=True)
    return sttm.save(model, tmp_path_factory.mktemp("merged"))


@pytest.fixture
def merged(merged_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the small model with learned mergers."""
    return Path(shutil.copytree(merged_model, tmp_path / "merged"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_inner(folder: Path, **values: Any) -> None:
    """Change the config of the model itself in a merged folder."""
    change(
        folder / "config.json",
        backbone_config=json.loads((folder / "config.json").read_text())["backbone_config"] | values,
    )


def change_tensors(folder: Path, edit: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(sttm.SttmError) as caught:
        answer(folder)
    said = str(caught.value)
    assert "\n" not in said and len(said.replace(str(folder), "")) < 400 and not said.endswith(".")
    return said


# --- every setting with every wrong type --------------------------------------------------------------------


WRONG: dict[str, Any] = {
    "null": None, "list": [1, "a"], "dict": {"a": 1}, "text": "abc", "no text": "", "long text": "x" * 5000,
    "negative": -3, "zero": 0, "huge": 10**30, "large": 10**7, "huge float": 1e30, "float": 2.5, "true": True,
    "nan": float("nan"), "deep": [[[[[[[[[[1]]]]]]]]]],
}  # fmt: skip
CONFIG = [
    "architectures", "attention_probs_dropout_prob", "decoder_hidden_size", "decoder_intermediate_size",
    "decoder_num_attention_heads", "decoder_num_hidden_layers", "dtype", "hidden_act", "hidden_dropout_prob",
    "hidden_size", "id2label", "image_size", "initializer_range", "intermediate_size", "label2id", "layer_norm_eps",
    "model_type", "norm_pix_loss", "num_attention_heads", "num_channels", "num_frames", "num_hidden_layers",
    "patch_size", "qv_bias", "transformers_version", "tubelet_size", "use_mean_pooling",
]  # fmt: skip
#: Settings that files may have besides: of any model, of older versions, of what would load code.
MORE = [
    "attn_implementation", "_attn_implementation", "torch_dtype", "num_labels", "qkv_bias", "return_dict",
    "output_hidden_states", "chunk_size_feed_forward", "problem_type", "is_encoder_decoder", "auto_map", "to_dict",
    "quantization_config", "per_layer_config", "use_return_dict", "attribute_map", "id2label2",
]  # fmt: skip
PROCESSOR = [
    "crop_size", "do_center_crop", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_processor_type",
    "image_std", "resample", "rescale_factor", "size", "offset", "frame_sampling", "frame_stride",
]  # fmt: skip
#: What is a right value of a setting, of a model that answers otherwise.
ALSO_RIGHT = {("image_mean", "float"), ("image_mean", "zero"), ("image_std", "float")}


def test_the_small_model_has_these_settings(small_model: Path) -> None:
    assert sorted(json.loads((small_model / "config.json").read_text())) == CONFIG
    assert {*json.loads((small_model / "preprocessor_config.json").read_text())} <= {*PROCESSOR}


@pytest.mark.parametrize(
    ("file", "key"),
    [("config.json", key) for key in CONFIG + MORE] + [("preprocessor_config.json", key) for key in PROCESSOR],
)
def test_no_wrong_type_ends_in_a_traceback_or_in_other_predictions(
    file: str, key: str, folder: Path, right: Answer, recwarn: pytest.WarningsRecorder
) -> None:
    values = json.loads((folder / file).read_text())
    for kind, value in WRONG.items():
        if (key, kind) in ALSO_RIGHT or (key == "torch_dtype" and kind == "null"):
            continue
        (folder / file).write_text(json.dumps(values | {key: value}))
        try:
            labels, found = answer(folder)
        except sttm.SttmError as error:
            said = str(error).replace(str(folder), "")
            assert "\n" not in said and len(said) < 400 and not said.endswith("."), (kind, said)
        else:
            assert labels == right[0] and torch.equal(found, right[1]), kind


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_passes_its_own_check_and_no_wrong_number(family: str, tmp_path: Path) -> None:
    model = lively(family)
    clips = pixels(model)
    sttm.save(model, tmp_path / "model")
    assert torch.equal(logits(sttm.load(tmp_path / "model"), clips), logits(model, clips))
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            for wrong in (-1, 10**7, "1", [value], None, True):
                change(tmp_path / "model" / "config.json", **{**values, key: wrong})
                try:
                    same = logits(sttm.load(tmp_path / "model"), clips)
                except sttm.SttmError as error:
                    assert "\n" not in str(error) and len(str(error)) < 600
                else:
                    assert torch.equal(same, logits(model, clips)), (key, wrong)


# --- what the config says of the tensors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"num_hidden_layers": 3}, "no place to (videomae.encoder.layer.3."),
        ({"num_hidden_layers": 5}, "no trained weights for videomae.encoder.layer.4."),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000, more than the layers"),
        ({"qv_bias": False}, "no place to (videomae.encoder.layer.0.attention.attention.query.bias"),
        ({"qkv_bias": False}, "no place to (videomae.encoder.layer.0.attention.attention.query.bias"),
        ({"use_mean_pooling": False}, "no trained weights for videomae.layernorm.bias"),
        ({"image_size": 1e30}, "image_size is 1e+30"),
        ({"image_size": 10**9}, "image_size is 1000000000, but has to be 1 or more, and at most 16384"),
        ({"num_frames": 10**4, "image_size": 10**3}, "tokens a clip"),
        ({"image_size": 4}, "make 0 tokens"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, more than"),
        ({"hidden_size": 48}, "no tensor of the weights has that width"),
        ({"intermediate_size": 10**9}, "intermediate_size is 1000000000, more than"),
        ({"intermediate_size": 32}, "of shape (64,) and the model needs (32,)"),
        ({"num_labels": 10**9, "id2label": None}, "num_labels is 1000000000, more than"),
        ({"id2label": {}}, "id2label is {}"),
        ({"id2label": {"0": "ant", "2": "bee"}}, "does not name every class"),
        ({"id2label": {"0": "ant", "1": "bee"}}, "of shape (3,) and the model needs (2,)"),
        ({"id2label": {"0": "ant", "1": "bee", "2": ""}}, "does not name every class"),
        ({"num_labels": 4}, "num_labels is 4 and id2label names 3"),
        ({"model_type": "sttm"}, "backbone_config=None"),
        ({"model_type": "vivit"}, "tubelet_size is 2"),
        ({"model_type": "timesformer"}, "no trained weights"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "could load code"),
        ({"_attn_implementation": "someone/kernel:run"}, "could load code"),
        ({"attn_implementation": "flash_attention_2"}, "could load code"),
    ],
)
def test_settings_that_do_not_fit_the_weights(values: dict[str, Any], part: str, folder: Path) -> None:
    change(folder / "config.json", **values)
    assert part in refused(folder)


def test_code_that_a_config_names_is_not_run(folder: Path, right: Answer, tmp_path: Path) -> None:
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    change(
        folder / "config.json",
        auto_map={"AutoConfig": "mine.Mine", "AutoModelForVideoClassification": "mine.Mine"},
        trust_remote_code=True,
    )
    labels, found = answer(folder)
    assert labels == right[0] and torch.equal(found, right[1]) and not (tmp_path / "ran").exists()
    change(folder / "config.json", model_type="mine")
    assert "which transformers does not know" in refused(folder) and not (tmp_path / "ran").exists()


def test_numbers_that_are_no_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    assert "as I32, which is no type of weights" in refused(folder)
    for number in (float("nan"), float("inf")):
        file.write_bytes(whole)
        change_tensors(folder, lambda weights: weights["fc_norm.weight"].__setitem__(3, number))  # noqa: B023
        assert "not finite (fc_norm.weight)" in refused(folder)


def test_tensors_that_are_missing_left_over_or_of_another_shape(folder: Path, right: Answer) -> None:
    change_tensors(folder, lambda weights: weights.update({"decoder.norm.weight": torch.ones(3)}))
    assert torch.equal(answer(folder)[1], right[1])  # of pre-training only
    change_tensors(folder, lambda weights: weights.update({"videomae.encoder.extra": torch.ones(3)}))
    assert "no place to (videomae.encoder.extra)" in refused(folder)
    change_tensors(folder, lambda weights: weights.pop("videomae.encoder.extra"))
    change_tensors(folder, lambda weights: weights.pop("fc_norm.bias"))
    assert "no trained weights for fc_norm.bias" in refused(folder)
    change_tensors(folder, lambda weights: weights.update({"fc_norm.bias": torch.ones(8)}))
    assert "fc_norm.bias of shape (8,) and the model needs (32,)" in refused(folder)
    change_tensors(folder, dict.clear)
    assert "holds no tensor" in refused(folder)


def test_weights_in_several_files(folder: Path, right: Answer, tmp_path: Path) -> None:
    sttm.load(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    assert len(weight_files(folder)) > 1
    assert torch.equal(answer(folder)[1], right[1])
    index = folder / "model.safetensors.index.json"
    shutil.copy(weight_files(folder)[0], tmp_path / "outside.safetensors")
    names = json.loads(index.read_text())["weight_map"]
    for name in ("../outside.safetensors", "absent.safetensors", "\ud800", "a\0", "x" * 300):
        change(index, weight_map={**names, "a": name})
        assert "not in the folder" in refused(folder)
    for no_map in ("", 3):
        change(index, weight_map=no_map)
        assert "not in the folder" in refused(folder)


def test_depth_is_that_of_the_longest_list() -> None:
    assert depth(["a.layer.0.w", "a.layer.7.w", "a.layer.7.b", "decoder.layers.1.w", "w"]) == 2
    assert depth(["w"]) == 0


# --- merged folders -----------------------------------------------------------------------------------------


def test_a_merged_folder_answers_as_the_model_that_was_saved(merged: Path, right: Answer) -> None:
    assert not torch.equal(answer(merged)[1], right[1])


def test_mergers_are_never_dropped(merged: Path) -> None:
    plan = json.loads((merged / PLAN_FILE).read_text())
    (merged / PLAN_FILE).unlink()
    assert f"saved merged and has no {PLAN_FILE}" in refused(merged)
    plain = {"compute": 1.0, "macs_after": plan["macs_before"]}
    for values, part in (
        ({"mergers": []}, "with 0 mergers"),
        ({"mergers": [], **plain}, "has mergers that sttm.json does not name"),
        ({"learned": None}, "learned is None"),
        ({"motion": False}, "has mergers that sttm.json does not name"),
        ({"mergers": plan["mergers"][:1]}, "has mergers that sttm.json does not name"),
    ):
        (merged / PLAN_FILE).write_text(json.dumps(plan | values))
        assert part in refused(merged)
    # And neither by a config that says that the model is plain.
    config = json.loads((merged / "config.json").read_text())
    (merged / PLAN_FILE).unlink()
    (merged / "config.json").write_text(json.dumps(config["backbone_config"] | {"model_type": config["backbone_type"]}))
    assert "no place to (" in refused(merged)


PLAN_KEYS = [
    "compute", "macs_before", "macs_after", "mergers", "method", "learned", "clip_shape", "selector", "family",
    "target", "motion", "restore",
]  # fmt: skip


#: What says the same: as it is, not known, or the default.
SAME_PLAN = {"learned true", "motion true", "target zero", "family no text", "selector null", "selector no text"}


@pytest.mark.parametrize("key", PLAN_KEYS)
def test_every_field_of_the_plan(key: str, merged: Path) -> None:
    values = json.loads((merged / PLAN_FILE).read_text())
    assert sorted(values) == sorted(PLAN_KEYS)
    right = answer(merged)[1]
    for kind, value in WRONG.items():
        (merged / PLAN_FILE).write_text(json.dumps(values | {key: value}))
        if (key, kind) == ("restore", "true"):  # another plan: to a head that reads the mean by size, the same tokens
            torch.testing.assert_close(answer(merged)[1], right)
        elif f"{key} {kind}" in SAME_PLAN:
            assert torch.equal(answer(merged)[1], right)
        else:
            assert PLAN_FILE in refused(merged), kind
    del values[key]
    (merged / PLAN_FILE).write_text(json.dumps(values))
    if key in ("selector", "family", "target", "restore"):  # they have a default
        assert torch.equal(answer(merged)[1], right)
    else:
        assert PLAN_FILE in refused(merged)


@pytest.mark.parametrize("key", ["layer", "frames_before", "tokens_before", "frames", "tokens"])
def test_every_field_of_a_merger(key: str, merged: Path) -> None:
    values = json.loads((merged / PLAN_FILE).read_text())
    for number in range(len(values["mergers"])):
        before = values["mergers"][number][key]
        for value in (*WRONG.values(), before + 1, before - 1):
            mergers = [dict(merger) for merger in values["mergers"]]
            mergers[number][key] = value
            if value == before and value is not True:
                continue
            (merged / PLAN_FILE).write_text(json.dumps(values | {"mergers": mergers}))
            refused(merged)
    mergers = [dict(merger) for merger in values["mergers"]]
    mergers[-1]["layer"] = 3  # where there is no tensor
    (merged / PLAN_FILE).write_text(json.dumps(values | {"mergers": mergers}))
    refused(merged)


def test_what_surrounds_the_config_of_a_merged_model(merged: Path) -> None:
    values = (merged / "config.json").read_text()
    for key in ("backbone_config", "backbone_type"):
        for value in WRONG.values():
            change(merged / "config.json", **{key: value})
            refused(merged)
            (merged / "config.json").write_text(values)
    change_inner(merged, num_hidden_layers=3)
    assert "no place to" in refused(merged)
    with pytest.raises(sttm.SttmError, match="no place to"):
        AutoModelForVideoClassification.from_pretrained(merged)
    change_inner(merged, num_hidden_layers=4, attn_implementation="kernels-community/flash-attn2")
    assert "could load code" in refused(merged)
    with pytest.raises(sttm.SttmError, match="could load code"):
        AutoModelForVideoClassification.from_pretrained(merged)


def test_tensors_of_mergers(merged: Path) -> None:
    whole = load_file(merged / "model.safetensors")
    name = next(key for key in whole if key.endswith("merger.motion.map.weight"))
    change_tensors(merged, lambda weights: weights[name].view(-1).__setitem__(0, float("nan")))
    assert f"not finite ({name})" in refused(merged)
    change_tensors(merged, lambda weights: weights.__setitem__(name, whole[name].view(torch.int32)))
    assert "as I32" in refused(merged)
    change_tensors(merged, lambda weights: weights.__setitem__(name, whole[name][:1].clone()))
    assert f"{name} of shape" in refused(merged)
    change_tensors(merged, lambda weights: weights.pop(name))
    assert name in refused(merged)
    with pytest.raises(sttm.SttmError, match="no weights for"):
        AutoModelForVideoClassification.from_pretrained(merged)
