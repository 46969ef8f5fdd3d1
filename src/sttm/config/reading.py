"""Reading settings: YAML in, a config may inherit from another, `--set a.b=v` over it.

A key that nobody knows is named in the error, with the nearest one that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sttm.config.settings import Settings
from sttm.errors import SttmError

#: The key under which a config names the one that it changes.
INHERIT = "inherit"


def load(path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Read a config, the ones it inherits from first, then the overrides.

    Args:
        path: a YAML file; its key `inherit` may name another, relative to it, that it changes.
        overrides: "a.b=v" each, v in YAML: "optimizer.lr=1e-3", "data.without=[other]", "merging.compute=null".

    Raises:
        SttmError: for a file that is missing or no YAML, an unknown key, a value out of range, a contradiction.
    """
    values = _read(Path(path), ())
    for override in overrides:
        values = _override(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SttmError(f"{path}: {_sentence(error)}") from error


def dump(settings: Settings) -> str:
    """The settings as YAML that `load` reads back to the same."""
    return yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise SttmError(f"{path} inherits from itself; take one `{INHERIT}` out")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SttmError(
            f"cannot read the config {path}: {reason}; give a YAML file such as those in configs/"
        ) from error
    except yaml.YAMLError as error:
        raise SttmError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SttmError(f"{path} holds no settings; a config is a YAML mapping such as those in configs/")
    base = values.pop(INHERIT, None)
    return values if base is None else _merge(_read(path.parent / str(base), (*seen, path.resolve())), values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping; null takes a setting back."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SttmError(f"--set {override} is not key=value; write, say, --set optimizer.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SttmError(f"--set {override}: the value is not YAML; quote it") from error
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return _merge(values, nested)


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys_beside(first["loc"]), n=1)
        return f"there is no setting {where}{f'; did you mean {near[0]}?' if near else ''}"
    if first["type"] == "missing":
        return f"{where} is missing; give it, as the configs in configs/ do"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}={first['input']!r}: {message}"


def _keys_beside(where: tuple[int | str, ...]) -> list[str]:
    """Settings that exist in the section where an unknown one was given."""
    section: type[BaseModel] = Settings
    for part in where[:-1]:
        kind = section.model_fields[str(part)].annotation
        section = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
    return list(section.model_fields)
