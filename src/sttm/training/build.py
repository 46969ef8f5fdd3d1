"""The model to train: from a checkpoint, with a new head or another number of frames if needed, or from scratch.

Legend: N tokens, C width, T token frames, S tokens in a frame, P prefix tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sttm import models
from sttm.backbones import backbone_of
from sttm.config import Settings
from sttm.config.parsing import read_json
from sttm.config.sections import MergingSettings, ModelSettings
from sttm.data.datasets.labels import plain as plain_name
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.transforms.processor_config import FAMILIES, model_config
from sttm.data.video.read import Sampling
from sttm.errors import SttmError, few, unknown
from sttm.evaluation.inference import labels_of
from sttm.model_folder import mismatch, open_folder, read_tensors, unexpected
from sttm.patching import api

HEAD = "classifier"  # in all families of transformers' video models
ADVICE = "; check the model section of the config"
KEEP = "leave that setting of model.config as the checkpoint has it (only frames and classes may change)"
#: Learned position embeddings over time by family, and whether they have an entry for each token of a frame.
LEARNED_POSITIONS = {
    "timesformer": ("timesformer.embeddings.time_embeddings", False),
    "vivit": ("vivit.embeddings.position_embeddings", True),
}


class Start(NamedTuple):
    """What training starts with."""

    model: Any
    preprocess: Preprocess
    teacher: Any
    """None where there is no distillation loss."""
    initialised: tuple[str, ...]
    """Parts of the model that start from random weights, though it comes from a checkpoint."""


def build_model(settings: Settings, classes: Sequence[str]) -> Start:
    """Return the model that training starts with, its preprocessing, and its teacher.

    Without classes (`data.unlabelled`) the model keeps its head.

    A new head and new mergers are initialised from `settings.run.seed`, so the same seed gives the same model.

    Raises:
        SttmError: for a checkpoint, family, setting or compute target that is not valid.
    """
    torch.manual_seed(settings.run.seed)
    if settings.model.start is None:
        (model, preprocess), initialised = _from_scratch(settings.model, classes), set[str]()
    else:
        model, preprocess, initialised = _from_checkpoint(settings.model, classes)
    if settings.model.attention is not None:
        with models.explained(f"use model.attention={settings.model.attention}", ADVICE):
            model.set_attn_implementation(settings.model.attention)
    preprocess = preprocess_of(settings.model, preprocess)
    teacher = _teacher(settings, model, classes)
    _bring_to_compute(model, settings.merging)
    return Start(model.train(), preprocess, teacher, tuple(sorted(initialised)))


def _from_scratch(settings: ModelSettings, classes: Sequence[str]) -> tuple[Any, Preprocess]:
    from transformers import AutoConfig, AutoModelForVideoClassification

    assert settings.family is not None
    if settings.family not in FAMILIES:
        raise unknown("model.family", settings.family, FAMILIES)
    config = AutoConfig.for_model(settings.family)
    _change(config, settings.config)
    _set_frames(config, settings.frames)
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        preprocess = Preprocess.from_folder(folder)
    with models.explained("make a model from scratch", ADVICE):
        return AutoModelForVideoClassification.from_config(config), preprocess


def _from_checkpoint(settings: ModelSettings, classes: Sequence[str]) -> tuple[Any, Preprocess, set[str]]:
    assert settings.start is not None
    folder = open_folder(models.resolve(settings.start))
    config = folder.config
    with models.explained(f"load {settings.start}", ADVICE):
        _change(config, settings.config)
        _set_frames(config, settings.frames)
    model, info = models.build(folder, f"load {settings.start}", ADVICE)
    table, whole_frames = LEARNED_POSITIONS.get(config.model_type, ("", False))
    _check_loaded(model, info, folder.path, settings.start, table)
    if table in {key[0] for key in info["mismatched_keys"]}:
        _interpolate_positions(model, folder.path, table, whole_frames)
    trained = not any(key.startswith(HEAD) for key in info["missing_keys"])
    if folder.plan is not None:
        models.install_saved(model, folder.path, folder.plan)
    folder.check_model(model)
    fitted = True
    if classes:
        fitted = _fit_head(model, classes, trained)
    elif not trained:
        raise SttmError(f"{settings.start} has no trained head, which training without labels keeps; give one that has")
    initialised = {key.rpartition(".")[0] for key in info["missing_keys"]} | (set() if fitted else {HEAD})
    return model, Preprocess.from_folder(folder.path), initialised


def _change(config: Any, changes: dict[str, Any]) -> None:
    """Set the settings of a transformers config."""
    known = config.to_dict()
    for key, value in changes.items():
        if key not in known:
            raise SttmError(f"model.config.{key} is not a setting of a {config.model_type} model; see its config.json")
        setattr(config, key, value)


def _set_frames(config: Any, frames: int | None) -> None:
    """Set the number of frames in a transformers config, by the family's own key."""
    if frames is None:
        return
    tubelet = getattr(config, "tubelet_size", 1)
    tubelet = tubelet if isinstance(tubelet, int) else tubelet[0]
    if frames % tubelet:
        raise SttmError(f"model.frames={frames} is not a multiple of {tubelet}, the frames that a token spans")
    setattr(config, FAMILIES[config.model_type].num_frames_key, frames)


def _check_loaded(model: Any, info: dict[str, Any], folder: Path, name: str, table: str) -> None:
    """Check that only the head, the position table, and parts that pre-training does not have, lack weights."""
    base = f"{model.base_model_prefix}."
    free = (".pooler.", ".predictor.")  # the one starts afresh, the other takes no part
    missing = sorted(k for k in info["missing_keys"] if k.startswith(base) and not any(part in k for part in free))
    if missing:
        advice = "start from a checkpoint of the same family and size"
        raise SttmError(f"{name} has no weights for {few(missing)}; {advice}")
    other = [key for key in info["mismatched_keys"] if key[0] != table and not key[0].startswith(HEAD)]
    if other:
        raise SttmError(f"{name} has {mismatch(other[0])}; {KEEP}")
    if unused := {key for key in unexpected(info, model, folder) if not key.startswith(HEAD)}:
        raise SttmError(f"{name} has trained tensors that the model gives no place to ({few(unused)}); {KEEP}")


def _interpolate_positions(model: nn.Module, folder: Path, table: str, whole_frames: bool) -> None:
    """Interpolate the checkpoint's learned position embeddings in time, for another number of frames."""
    stored_1NC, parameter = read_tensors(folder, {table}).get(table), model.get_parameter(table)
    if stored_1NC is None:
        raise SttmError(f"{folder} has no {table} to interpolate; keep its number of frames (leave model.frames out)")
    prefix = 1 if whole_frames else 0
    tokens = backbone_of(model).grid(model, backbone_of(model).clip_shape(model)).tokens if whole_frames else 1
    prefix_1PC, body_1NC = stored_1NC[:, :prefix], stored_1NC[:, prefix:]
    frames = (parameter.shape[1] - prefix) // tokens
    # [1, T*S, C] -> [1, S*C, T], interpolated, and back
    rows = body_1NC.unflatten(1, (-1, tokens)).flatten(2).transpose(1, 2)
    rows = nn.functional.interpolate(rows.float(), frames, mode="linear", align_corners=False)
    longer_1NC = rows.transpose(1, 2).unflatten(2, (tokens, -1)).flatten(1, 2)
    with torch.no_grad():
        parameter.copy_(torch.cat((prefix_1PC, longer_1NC.to(prefix_1PC.dtype)), dim=1))


def _fit_head(model: Any, classes: Sequence[str], trained: bool) -> bool:
    """Give the model a head for these classes; return whether it has the rows of its own head, or is a new one."""
    names = {plain_name(name): int(i) for i, name in model.config.id2label.items()}
    rows = [names.get(plain_name(name)) for name in classes]
    old: nn.Linear = getattr(model, HEAD)
    new = nn.Linear(old.in_features, len(classes))
    fitted = trained and all(row is not None for row in rows)
    with torch.no_grad():
        if fitted:
            new.weight.copy_(old.weight[rows])
            new.bias.copy_(old.bias[rows])
        else:
            nn.init.trunc_normal_(new.weight, std=0.02)
            new.bias.zero_()
    setattr(model, HEAD, new)
    model.num_labels = model.config.num_labels = len(classes)
    model.config.id2label, model.config.label2id = dict(enumerate(classes)), {n: i for i, n in enumerate(classes)}
    return fitted


def preprocess_of(settings: ModelSettings, own: Preprocess) -> Preprocess:
    """Return the preprocessing that the settings ask for; what they leave out is the checkpoint's own.

    Raises:
        SttmError: for `resize` with a processor that has a size of its own.
    """
    if settings.resize is not None and own.processor == "VJEPA2":
        raise SttmError("model.resize cannot be set for a V-JEPA 2, whose processor resizes by its crop; leave it out")
    own = replace(own, sampling=sampling_of(settings, own.sampling), resize=settings.resize or own.resize)
    if settings.mean is None or settings.std is None:
        return own
    return replace(own, mean=settings.mean, std=settings.std)


def sampling_of(settings: ModelSettings, own: Sampling) -> Sampling:
    """Return the sampling that the settings ask for; what they leave out is the checkpoint's own."""
    mode = settings.sampling or own.mode
    return Sampling(settings.frames or own.num_frames, mode, settings.stride or (own.stride if mode == "dense" else 1))


def _teacher(settings: Settings, plain: Any, classes: Sequence[str]) -> Any:
    """Return the frozen model whose logits the distillation loss compares with, or None."""
    if settings.distillation is None:
        return None
    name = settings.distillation.teacher
    source = name or str(settings.model.start)
    teacher = deepcopy(plain) if name is None else models.load(name)
    if name is None and api.is_merged(teacher):
        api.remove(teacher)
    saved = model_config(read_json(models.resolve(source) / "config.json"))
    known = {plain_name(label) for label in (saved.get("id2label") or {}).values()}
    unknown = [label for label in classes or labels_of(plain) if plain_name(label) not in known]
    if unknown:
        raise SttmError(f"the teacher {source} has no class {unknown[0]}; train it on these classes first")
    if name is not None:
        _fit_head(teacher, classes or labels_of(plain), trained=True)
        if backbone_of(teacher).clip_shape(teacher) != backbone_of(plain).clip_shape(plain):
            wrong = f"the teacher {source} takes clips of another shape than the model"
            raise SttmError(f"{wrong}; choose one with the same frames and size")
    return teacher.eval().requires_grad_(False)


def _bring_to_compute(model: Any, settings: MergingSettings) -> None:
    """Merge as the settings say; mergers that the model came with stay if they meet the settings."""
    compute = settings.compute if settings.match_frames is None else _compute_of_frames(model, settings.match_frames)
    if api.is_merged(model):
        compute = api.plan_of(model).compute if compute is None else compute
        if compute == 1:
            api.remove(model)
    if compute is not None and compute < 1:
        models.bring_to_compute(
            model, compute, settings.method, learned=settings.learned, selector=settings.selector,
            layers=settings.layers, window=settings.window, motion=settings.motion,
        )  # fmt: skip


def _compute_of_frames(model: Any, frames: int) -> float:
    """Return the multiply-adds of the plain model at `frames` over those at its own number of frames."""
    config = deepcopy(model.config)
    _set_frames(config, frames)
    with torch.device("meta"):
        fewer = type(model)(config)
    now = api.plan_of(model).macs_before if api.is_merged(model) else api.macs(model)
    compute = api.macs(fewer) / now
    if compute >= 1:
        own = backbone_of(model).clip_shape(model)[0]
        raise SttmError(f"merging.match_frames={frames} leaves nothing to merge at model.frames={own}; give fewer")
    return compute
