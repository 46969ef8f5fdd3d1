"""Reading settings from YAML: a config may inherit from another, and `--set a.b=v` overrides both.

A config is named by its path, or by its name where it is one of the recipes that ship with the package.

An unknown key is named in the error, with the most similar key that exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sttm.config.parsing import MAX_CONFIG, parse_yaml, read_bytes
from sttm.config.settings import Settings
from sttm.errors import SttmError, did_you_mean, quoted, shown

#: The key with which a config names the config that it changes.
INHERIT = "inherit"
#: The stem of a config that only others inherit from.
SHARED = "base"


def load(path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Return the settings of a config and of those that it inherits from, changed by the overrides.

    Args:
        path: a YAML file, or the name of a recipe; its key `inherit` may name another file, relative to this one, that
            it changes.
        overrides: "a.b=v" each, with v in YAML: "optimizer.lr=1e-3", "data.without=[other]", "merging.compute=null".

    Raises:
        SttmError: for a file that is missing or not YAML, an unknown key, a value out of range, a contradiction.
    """
    values = _read(find(path), ())
    for override in overrides:
        values = _override(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SttmError(f"{path}: {_sentence(error)}") from error


def recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name: "ut_interaction", "ssv2/videomae-b-sttm".

    They lie in the package where it is installed, and beside src/ in a checkout.
    """
    package = Path(__file__).parents[1]
    folder = package / "configs"
    if not folder.is_dir():
        folder = package.parents[1] / "configs"
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths if path.stem != SHARED}


def find(name: str | Path) -> Path:
    """Return the file of a config: a path, or the name of a recipe, with or without its suffix.

    Raises:
        SttmError: if there is neither such a file nor such a recipe.
    """
    path, known = Path(name), recipes()
    recipe = (path.with_suffix("") if path.suffix == ".yaml" else path).as_posix()
    if not path.is_file() and recipe in known:
        return known[recipe]
    if path.exists():
        return path
    advice = did_you_mean(recipe, known, "`sttm configs` lists the recipes")
    raise SttmError(f"{name} is neither a file nor a recipe; {advice}")


def dump(settings: Settings) -> str:
    """Return the settings as YAML, which `load` reads back to equal settings."""
    return yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise SttmError(f"{path} inherits from itself; remove one `{INHERIT}`")
    try:
        text = read_bytes(path, MAX_CONFIG).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SttmError(
            f"cannot read the config {path}: {reason}; give a YAML file such as those in configs/"
        ) from error
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise SttmError(f"{path} holds no settings; give a YAML mapping such as those in configs/")
    base = values.pop(INHERIT, None)
    return values if base is None else _merge(_read(path.parent / str(base), (*seen, path.resolve())), values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` changed by `above`, mapping by mapping; null unsets an optional setting."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """Return the values changed by one "a.b=v"."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SttmError(f"--set {quoted(override)} is not key=value; write it as in --set optimizer.lr=1e-3")
    nested: Any = parse_yaml(text, f"the value of --set {name[:100]}", "put it in quotes")
    for key in reversed(keys):
        nested = {key: nested}
    return _merge(values, nested)


def _sentence(error: ValidationError) -> str:
    """Return the first problem as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        advice = did_you_mean(first["loc"][-1], _keys_beside(first["loc"]), "see sttm.config.sections")
        return f"there is no setting {quoted(where)}; {advice}"
    if first["type"] == "missing":
        return f"{where} is missing; add it, as in the configs in configs/"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if first["type"] == "literal_error":
        near = did_you_mean(first["input"], re.findall("'([^']+)'", first["ctx"]["expected"]))
        message += f"; {near}" if near else ""
    return f"{where}={shown(first['input'])}: {message}"


def _keys_beside(where: tuple[int | str, ...]) -> list[str]:
    """Return the settings of the section in which an unknown one was given."""
    section: type[BaseModel] = Settings
    for part in where[:-1]:
        kind = section.model_fields[str(part)].annotation
        section = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
    return list(section.model_fields)
