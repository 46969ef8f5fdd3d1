"""Make a config of transformers from a config.json that anyone may have written.

Every setting that the family's config class declares is checked against its type, against its range, and against the
sizes in the header of the weights, so that none asks for more memory than the weights take. Other settings do not reach
the config; none can name code to load.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sttm.errors import SttmError, first_line, shown

#: The type and the shape of each tensor of some weights, by name.
Header = Mapping[str, tuple[str, tuple[int, ...]]]

AGAIN = "save or download the model again"
DTYPES = ("float32", "float16", "bfloat16", "float64")
#: Attention that transformers itself has. Others load a package, or a kernel from the hub.
ATTENTION = ("eager", "sdpa")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
#: Settings of all configs that would load other code or other weights, or change what a block is.
UNSUPPORTED = ("quantization_config", "per_layer_config", "experts_implementation", "_experts_implementation")
#: Settings that say what a model returns, which its callers choose.
OUTPUTS = ("return_dict", "use_return_dict", "output_hidden_states", "output_attentions")
#: Other names of settings, as older versions of transformers wrote them, and the type of each.
OLDER: dict[str, Any] = {"num_labels": int, "torch_dtype": str, "qkv_bias": bool}
#: Sides and frames of a clip are not in the header of the weights; and so many tokens can one clip have.
CLIP_KEYS, MAX_SIDE, MAX_TOKENS = ("image_size", "crop_size", "num_frames", "frames_per_clip"), 2**14, 2**16
PATCH_KEYS = ("patch_size", "tubelet_size")


def make_config(kind: object, values: Mapping[str, Any], file: Path, header: Header | None) -> Any:
    """Return a config of the family's own class, made from the settings that it declares and no others.

    Args:
        kind: the model type.
        file: the config.json, for messages.
        header: the tensors that the model will get; None where they are not known.

    Raises:
        SttmError: for an unknown type, or a setting that is of another type, out of range, or larger than the tensors.
    """
    from transformers import CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise SttmError(f"{file} has model_type={shown(kind)}, which transformers does not know; {AGAIN}")
    family: Any = CONFIG_MAPPING[kind]
    _check_code(values, file)
    inner = getattr(family, "sub_configs", {})
    for key in inner.keys() & values.keys():
        if not isinstance(values[key], dict):
            raise SttmError(f"{file} has {key}={shown(values[key])}, not the config of a model; {AGAIN}")
        # Of a model of pictures and texts; the weights are those of its tower.
        weights, part = header if key == "vision_config" else None, getattr(inner[key], "model_type", "")
        values = {**values, key: make_config(part, values[key], file, weights).to_dict()}
    hints = typing.get_type_hints(family, localns={"torch": torch})
    declared = {field.name: hints[field.name] for field in fields(family)}
    known = {key: values[key] for key in values if key in (declared | OLDER) and key not in OUTPUTS}
    for key, value in known.items():
        if key not in inner:  # which are checked
            _check_type(key, value, (declared | OLDER)[key], file)
    _check_labels(known, file)
    defaults = family()
    for key, value in known.items():
        _check_range(key, value, getattr(defaults, key, None), file)
    if header is not None:
        _check_sizes(known, defaults, header, file)
    try:
        config = family(**{key: value for key, value in known.items() if key != "label2id"})
    except Exception as error:  # whatever a config class of transformers raises
        raise SttmError(f"{file}: {first_line(error)[:200]}; {AGAIN}") from error
    # Of the two, id2label alone says what the outputs mean.
    config.label2id = {label: number for number, label in config.id2label.items()}
    return config


def _check_code(values: Mapping[str, Any], file: Path) -> None:
    """Raise SttmError for a setting that would load code, or weights of another kind."""
    for key in ATTENTION_KEYS:
        if values.get(key) is not None and values[key] not in ATTENTION:
            raise SttmError(
                f"{file} asks for the attention {shown(values[key])}, which could load code; remove {key} there, or "
                f"give {' or '.join(ATTENTION)}, and choose another with set_attn_implementation once it is loaded"
            )
    for key in UNSUPPORTED:
        if values.get(key) is not None:
            raise SttmError(f"{file} has {key}, which is not supported; save the model again without it")


def _check_type(key: str, value: Any, hint: Any, file: Path) -> None:
    """Raise SttmError for a value of another type than the config class declares; true is no number."""
    from pydantic import ValidationError

    if key in ("dtype", "torch_dtype"):
        if value is not None and value not in DTYPES:
            raise SttmError(f"{file}: {key} is {shown(value)}; allowed are {', '.join(DTYPES)}")
        return
    try:
        _validator(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise SttmError(
            f"{file}: {key} is {shown(value)}, but the {message[:1].lower()}{message[1:]}; {AGAIN}"
        ) from None


@cache
def _validator(hint: Any) -> Any:
    """Return pydantic's validator of a type, made once."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False))


def _check_labels(values: dict[str, Any], file: Path) -> None:
    """Raise SttmError unless the classes are named and numbered from 0."""
    names = values.get("id2label")
    if names is None:
        return
    if not names or sorted(names) != sorted(map(str, range(len(names)))) or not all(names.values()):
        raise SttmError(f"{file}: id2label is {shown(names)}, which does not name every class from 0 on; {AGAIN}")
    if values.get("num_labels", len(names)) != len(names):
        count = values["num_labels"]
        raise SttmError(f"{file}: num_labels is {shown(count)} and id2label names {len(names)} classes; {AGAIN}")


def _check_range(key: str, value: Any, default: Any, file: Path) -> None:
    """Raise SttmError for a number that no model of any size has."""
    allowed, right = "", True
    if isinstance(value, bool | str | None) or key in ("id2label", "label2id"):
        return
    if key.endswith("_eps"):
        allowed, right = "above 0 and at most 0.1", 0 < value <= 0.1
    elif key.endswith(("_prob", "_rate", "dropout")):
        allowed, right = "from 0 to 1", 0 <= value <= 1
    elif key.endswith("_ratio"):
        allowed, right = "above 0 and at most 16", 0 < value <= 16
    elif isinstance(value, float):
        allowed, right = "0 or more", value >= 0
    else:
        least = 0 if default == 0 else 1
        sizes = _numbers(value)
        allowed = f"{least} or more" + (f", and at most {MAX_SIDE}" if key in CLIP_KEYS else "")
        right = all(size >= least and (size <= MAX_SIDE or key not in CLIP_KEYS) for size in sizes)
        if isinstance(value, list | tuple) and all(isinstance(part, int) for part in value):
            length = len(default) if isinstance(default, list | tuple) else 2
            allowed, right = f"{length} numbers, each {allowed}", right and len(value) == length
    if not right:
        raise SttmError(f"{file}: {key} is {shown(value)}, but has to be {allowed}; {AGAIN}")


def _check_sizes(values: Mapping[str, Any], defaults: Any, header: Header, file: Path) -> None:
    """Raise SttmError for a size or a number of layers that the weights cannot have, or a clip of too many tokens."""
    lengths = {length for _, shape in header.values() for length in shape}
    for key, value in values.items():
        if isinstance(value, bool | float) or key in CLIP_KEYS or key in ("id2label", "label2id"):
            continue
        default, limit = getattr(defaults, key, None), max(lengths, default=1)
        if "layers" in key:
            limit = depth(header)
        most = max([limit, *_numbers(default)])
        if any(size > most for size in _numbers(value)):
            what = "layers" if "layers" in key else "tensors"
            raise SttmError(f"{file}: {key} is {shown(value)}, more than the {what} of the weights have; {AGAIN}")
    width = values.get("hidden_size", getattr(defaults, "hidden_size", None))
    if width is not None and width not in lengths:
        raise SttmError(f"{file}: hidden_size is {shown(width)}, and no tensor of the weights has that width; {AGAIN}")
    _check_clip({key: values.get(key, getattr(defaults, key, None)) for key in (*CLIP_KEYS, *PATCH_KEYS)}, file)


def _check_clip(values: Mapping[str, Any], file: Path) -> None:
    """Raise SttmError for a clip without a token, or with more than any model takes."""
    sides = [_numbers(values[key]) for key in ("image_size", "crop_size") if values[key] is not None]
    patch = _numbers(values["patch_size"]) or _numbers(values["tubelet_size"])[1:]
    frames = [values[key] for key in ("num_frames", "frames_per_clip") if values[key] is not None]
    if not sides or not patch:
        return
    height, width = sides[0][0], sides[0][-1]
    tokens = (height // patch[0]) * (width // patch[-1]) * (frames[0] if frames else 1)
    if not 0 < tokens <= MAX_TOKENS:
        size = f"{height} x {width} in patches of {patch[0]} x {patch[-1]}"
        raise SttmError(f"{file}: frames of {size} make {tokens:,} tokens a clip; 1 to {MAX_TOKENS:,} are possible")


def depth(header: Iterable[str]) -> int:
    """Return the largest number of layers that the names of tensors count: those of "encoder.layer.3.norm.weight"."""
    numbers: dict[str, set[str]] = {}
    for name in header:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal():
                numbers.setdefault(".".join(parts[:place]), set()).add(part)
    return max(map(len, numbers.values()), default=0)


def _numbers(value: Any) -> list[int]:
    """Return the whole numbers of a setting that may be one or a list of them."""
    parts = value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
