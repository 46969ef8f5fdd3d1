"""Read JSON and YAML that anyone may have written: plain values of sane size and depth, or one sentence.

JSON and YAML allow more than a config or a list can mean: numbers of thousands of digits, NaN, nesting that ends the
parser, aliases that expand to billions of values, dates and other Python objects. None of these passes.
"""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

import yaml

from sttm.errors import SttmError, first_line

#: Digits of a whole number that every reader takes: those of 2**63.
MAX_DIGITS = 19
#: Values of a YAML text with its aliases expanded.
MAX_VALUES = 100_000
#: Bytes of a JSON file that describes a model, of a config, and of a list.
MAX_BYTES, MAX_CONFIG, MAX_LIST = 2**26, 2**20, 2**32


def parse_json(text: str | bytes, name: str | Path, advice: str = "correct it there") -> Any:
    """Return the value of a JSON text.

    Args:
        name: what holds the text, for messages.
        advice: what to do about a wrong text.

    Raises:
        SttmError: for a text that is no JSON, is nested too deeply, or has a number that nothing can use.
    """
    try:
        return json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_no_number)
    except RecursionError:
        raise SttmError(f"{name} is not valid JSON (it is nested too deeply); {advice}") from None
    except ValueError as error:  # no JSON, or no text at all
        raise SttmError(f"{name} is not valid JSON ({first_line(error)}); {advice}") from None


def read_json(file: Path) -> dict[str, Any]:
    """Read a file of a model folder that holds one JSON object.

    Raises:
        SttmError: for a missing or unreadable file, or anything else in it.
    """
    if not file.is_file():
        raise SttmError(f"{file} does not exist; give the folder of a saved transformers model")
    try:
        data = read_bytes(file, MAX_BYTES)
    except OSError as error:
        raise SttmError(f"{file} cannot be read ({error.strerror}); give a readable model folder") from None
    values = parse_json(data, file, "save or download the model again")
    if not isinstance(values, dict):
        raise SttmError(f"{file} holds a {type(values).__name__}, not an object; save or download it again")
    return values


def read_bytes(file: Path, most: int) -> bytes:
    """Return the bytes of a file: a regular one, neither a device without end nor a pipe that nobody fills.

    Raises:
        SttmError: for any other, or one of more than `most` bytes.
        OSError: if the system cannot read it.
    """
    state = file.stat()
    if not stat.S_ISREG(state.st_mode):
        raise SttmError(f"{file} is no regular file; give the path of one")
    if state.st_size > most:
        raise SttmError(f"{file} is larger than {most >> 20:,} MiB, which is more than it can need; check the path")
    with file.open("rb") as opened:
        return opened.read(state.st_size)  # with a number that is not more, as memory is reserved for it


def parse_yaml(text: str, name: str | Path, advice: str = "correct it there") -> Any:
    """Return the value of a YAML text: mappings, lists, texts, numbers, true, false and null; a date is a text.

    Args:
        name: what holds the text, for messages.
        advice: what to do about a wrong text.

    Raises:
        SttmError: for a text that is no YAML, is nested too deeply, expands too far, or has any other value.
    """
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > MAX_VALUES:
            raise SttmError(f"{name} has aliases that expand to over {MAX_VALUES:,} values; write them out")
        return loader.construct_document(node)
    except RecursionError:
        raise SttmError(f"{name} is not YAML (it is nested too deeply); {advice}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, SttmError):
            raise
        raise SttmError(f"{name} is not YAML ({' '.join(str(error).split())}); {advice}") from error


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without its other types: dates, sets, bytes and pairs."""


def _whole(text: str) -> int:
    _check_digits(text)
    return int(text)


def _check_digits(text: str) -> None:
    if len(text.lstrip("+-")) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits")


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text[:20]}, which is too large")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"it has {text}, which is no number of JSON")


def _construct_int(loader: _PlainLoader, node: yaml.ScalarNode) -> int:
    _check_digits(node.value)
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


def _refuse(loader: _PlainLoader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, f"a value of type {node.tag} is not allowed", node.start_mark)


_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_PlainLoader.yaml_constructors = {
    tag: make if tag in _PLAIN else _refuse for tag, make in yaml.SafeLoader.yaml_constructors.items()
}
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for, those behind aliases counted each time; infinite for a cycle."""
    if id(node) not in known:
        known[id(node)] = math.inf  # what it contains itself
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
