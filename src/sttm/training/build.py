"""A model to train: from a checkpoint, with a head for other classes and at another number of frames, or from nothing.

Legend: K classes, C width, T token frames, S tokens in a frame, P prefix tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sttm import models
from sttm.backbones import backbone_of
from sttm.config import Settings
from sttm.config.settings import MergingSettings, ModelSettings
from sttm.data.datasets.labels import plain as plain_name
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.transforms.processor_config import FAMILIES
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.patching.saving import MODEL_TYPE, PLAN_FILE, read_config

HEAD = "classifier"  # in all families of transformers' video models
#: Tables of learnt positions over time, by family, and whether an entry is a whole frame of tokens.
LEARNT_POSITIONS = {
    "timesformer": ("timesformer.embeddings.time_embeddings", False),
    "vivit": ("vivit.embeddings.position_embeddings", True),
}


def make(settings: Settings, classes: Sequence[str]) -> tuple[Any, Preprocess, Any]:
    """The model that training starts with, its preprocessing, and the teacher (or None).

    The same seed makes the same model: a new head, and mergers put in, are drawn from `settings.run.seed`.

    Raises:
        SttmError: for a checkpoint, a family, a setting or a budget that cannot be.
    """
    torch.manual_seed(settings.run.seed)
    if settings.model.start is None:
        model, preprocess = _from_nothing(settings.model, classes)
    else:
        model, preprocess = _from_checkpoint(settings.model, classes)
    if settings.model.attention is not None:
        with _sentences(f"use model.attention={settings.model.attention}"):
            model.set_attn_implementation(settings.model.attention)
    preprocess = replace(preprocess, sampling=_sampling(settings.model, preprocess.sampling))
    teacher = _teacher(settings, model, classes)
    _merge(model, settings)
    return model.train(), preprocess, teacher


def _from_nothing(settings: ModelSettings, classes: Sequence[str]) -> tuple[Any, Preprocess]:
    from transformers import AutoConfig, AutoModelForVideoClassification

    assert settings.family is not None
    if settings.family not in FAMILIES:
        raise SttmError(f"model.family={settings.family} is unknown; choose one of {', '.join(FAMILIES)}")
    config = AutoConfig.for_model(settings.family)
    _change(config, settings.config)
    _set_frames(config, settings.frames)
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        preprocess = Preprocess.from_folder(folder)
    with _sentences("make a model from nothing"):
        return AutoModelForVideoClassification.from_config(config), preprocess


def _from_checkpoint(settings: ModelSettings, classes: Sequence[str]) -> tuple[Any, Preprocess]:
    from transformers import AutoConfig, AutoModelForVideoClassification

    assert settings.start is not None
    folder = models.resolve(settings.start)
    with _sentences(f"load {settings.start}"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        config = config.inner() if config.model_type == MODEL_TYPE else config
        _change(config, settings.config)
        _set_frames(config, settings.frames)
        with models.quiet():
            model, info = AutoModelForVideoClassification.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
            )
    _check_loaded(model, info, settings.start)
    _stretch_positions(model, folder, {str(key[0]) for key in info["mismatched_keys"]})
    trained = not any(key.startswith(HEAD) for key in info["missing_keys"])
    if (folder / PLAN_FILE).exists():
        models.install_saved(model, folder)
    _fit_head(model, classes, trained)
    for key, value in model.state_dict().items():
        if not value.isfinite().all():
            raise SttmError(f"{folder} has weights that are not finite ({key}); start from another checkpoint")
    return model, Preprocess.from_folder(folder)


def _change(config: Any, changes: dict[str, Any]) -> None:
    known = config.to_dict()
    for key, value in changes.items():
        if key not in known:
            raise SttmError(f"model.config.{key} is no setting of a {config.model_type} model; see its config.json")
        setattr(config, key, value)


def _set_frames(config: Any, frames: int | None) -> None:
    if frames is None:
        return
    tubelet = getattr(config, "tubelet_size", 1)
    tubelet = tubelet if isinstance(tubelet, int) else tubelet[0]
    if frames % tubelet:
        raise SttmError(f"model.frames={frames} is not a multiple of {tubelet}, the frames that a token spans")
    setattr(config, FAMILIES[config.model_type].num_frames_key, frames)


def _check_loaded(model: nn.Module, info: dict[str, Any], name: str) -> None:
    """Only the head, and what a pre-training checkpoint has no use for, may be without weights."""
    base = f"{model.base_model_prefix}."
    lacking = sorted(key for key in info["missing_keys"] if key.startswith(base) and ".pooler." not in key)
    if lacking:
        raise SttmError(f"{name} has no weights for {lacking[0]}; start from a checkpoint of the same family and size")
    table, _ = LEARNT_POSITIONS.get(model.config.model_type, ("", False))  # type: ignore[union-attr, arg-type]
    other = [key for key in info["mismatched_keys"] if key[0] != table and not key[0].startswith(HEAD)]
    if other:
        key, found, wanted = other[0]
        raise SttmError(
            f"{name} has {key} of shape {tuple(found)} and the model wants {tuple(wanted)}; leave that setting of "
            "model.config as the checkpoint has it (only the frames and the classes may change)"
        )


def _stretch_positions(model: nn.Module, folder: Path, mismatched: set[str]) -> None:
    """Learnt positions for another number of frames, interpolated in time from the checkpoint's."""
    table, whole_frames = LEARNT_POSITIONS.get(str(model.config.model_type), ("", False))  # type: ignore[union-attr]
    if table not in mismatched:
        return
    given_1NC, parameter = _stored(folder, table), model.get_parameter(table)
    prefix = 1 if whole_frames else 0
    tokens = backbone_of(model).grid(model, backbone_of(model).clip_shape(model)).tokens if whole_frames else 1
    head_1PC, body_1NC = given_1NC[:, :prefix], given_1NC[:, prefix:]
    frames = (parameter.shape[1] - prefix) // tokens
    # [1, T*S, C] -> [1, S*C, T], stretched, and back
    rows = body_1NC.unflatten(1, (-1, tokens)).flatten(2).transpose(1, 2)
    rows = nn.functional.interpolate(rows.float(), frames, mode="linear", align_corners=False)
    stretched_1NC = rows.transpose(1, 2).unflatten(2, (tokens, -1)).flatten(1, 2)
    with torch.no_grad():
        parameter.copy_(torch.cat((head_1PC, stretched_1NC.to(head_1PC.dtype)), dim=1))


def _stored(folder: Path, name: str) -> Tensor:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            if name in weights.keys():
                tensor: Tensor = weights.get_tensor(name)
                return tensor
    raise SttmError(f"{folder} has no {name} to stretch; keep its number of frames (leave model.frames out)")


def _fit_head(model: Any, classes: Sequence[str], trained: bool) -> None:
    """A head for these classes: the checkpoint's own rows where it knows all of them, or a new one."""
    names = {plain_name(name): int(i) for i, name in model.config.id2label.items()}
    rows = [names.get(plain_name(name)) for name in classes]
    old: nn.Linear = getattr(model, HEAD)
    new = nn.Linear(old.in_features, len(classes))
    with torch.no_grad():
        if trained and all(row is not None for row in rows):
            new.weight.copy_(old.weight[rows])
            new.bias.copy_(old.bias[rows])
        else:
            nn.init.trunc_normal_(new.weight, std=0.02)
            new.bias.zero_()
    setattr(model, HEAD, new)
    model.num_labels = model.config.num_labels = len(classes)
    model.config.id2label, model.config.label2id = dict(enumerate(classes)), {n: i for i, n in enumerate(classes)}


def _sampling(settings: ModelSettings, own: Sampling) -> Sampling:
    mode = settings.sampling or own.mode
    return Sampling(settings.frames or own.num_frames, mode, settings.stride or (own.stride if mode == "dense" else 1))


def _teacher(settings: Settings, plain: Any, classes: Sequence[str]) -> Any:
    wanted = settings.distillation
    if wanted is None:
        return None
    if wanted.teacher is None:
        teacher = deepcopy(plain)
        source = str(settings.model.start)
        if api.is_merged(teacher):
            api.remove(teacher)
    else:
        teacher, source = models.load(wanted.teacher), wanted.teacher
    saved = read_config(models.resolve(source))
    known = {plain_name(name) for name in (saved.get("id2label") or {}).values()}
    unknown = [name for name in classes if plain_name(name) not in known]
    if unknown:
        raise SttmError(f"the teacher {source} does not know the class {unknown[0]}; train it on these classes first")
    if wanted.teacher is not None:
        _fit_head(teacher, classes, trained=True)
        if backbone_of(teacher).clip_shape(teacher) != backbone_of(plain).clip_shape(plain):
            raise SttmError(
                f"the teacher {source} takes other clips than the model; choose one of the same frames and size"
            )
    return teacher.eval().requires_grad_(False)


def _merge(model: Any, settings: Settings) -> None:
    """Brings the model to its budget; mergers that it came with stay if the budget is theirs."""
    wanted = settings.merging
    compute = wanted.compute if wanted.match_frames is None else _share_of_frames(model, wanted.match_frames)
    if api.is_merged(model):
        own = api.plan_of(model)
        if _is_wanted(own, wanted, compute):
            return
        compute = own.compute if compute is None else compute
        api.remove(model)
    if compute is not None and compute < 1:
        api.apply(
            model,
            compute,
            wanted.method,
            wanted.learned,
            selector=wanted.selector,
            layers=wanted.layers,
            window=wanted.window,
        )


def _is_wanted(own: Plan, wanted: MergingSettings, compute: float | None) -> bool:
    """Whether the mergers that a model came with are those asked for; what the settings leave out may be anything."""
    if compute is not None and not own.compute <= compute < own.compute + 0.01:
        return False
    windows = [m.frames_before // m.frames for m in own.mergers[:1]]
    return (
        (own.method, own.learned) == (wanted.method, wanted.learned)
        and wanted.selector in (None, own.selector)
        and wanted.layers in (None, tuple(m.layer for m in own.mergers))
        and wanted.window in (None, *windows)
    )


def _share_of_frames(model: Any, frames: int) -> float:
    """What the plain model would cost at `frames`, over what it costs now."""
    config = deepcopy(model.config)
    _set_frames(config, frames)
    with torch.device("meta"):
        fewer = type(model)(config)
    now = api.plan_of(model).macs_before if api.is_merged(model) else api.macs(model)
    share = api.macs(fewer) / now
    if share >= 1:
        own = backbone_of(model).clip_shape(model)[0]
        raise SttmError(f"merging.match_frames={frames} leaves nothing to merge at model.frames={own}; give fewer")
    return share


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turns what transformers raises for a bad checkpoint or config into one sentence."""
    try:
        yield
    except SttmError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise SttmError(f"cannot {what}: {reason}; see model in the config") from error
