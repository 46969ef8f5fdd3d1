"""Odd values, and bytes, JSON and text that are wrong in one place."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

#: What is put in the place of a value.
ODD: list[Any] = [None, True, False, -1, 0, 1, 3, 10**6, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e30, 1e308]
ODD += [math.nan, math.inf, "", "x", "0", "1", "x" * 5000, "../../etc/passwd", "/dev/zero", "a\nb", "%s%n%d", "\0"]
ODD += ["\ud800", "nan", "${HOME}", [], [1], [[]], ["x", None], [0] * 1000, {}, {"a": 1}, {"": {}}]
ODD += [{"model_type": "vit"}, {"!!python/object": "id"}]
#: Four and eight bytes that claim much.
CLAIMS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**6, 10**9]
#: Names in containers behind or before which a number says how much there is.
MARKS = b"moov mdat stsz stts stco stsc ctts elst trak avcC ftyp idx1 movi".split()
#: Keys that a JSON file gets besides.
KEYS = ["x", "", "a" * 400, "auto_map", "_attn_implementation", "quantization_config"]


def odd(rng: random.Random) -> Any:
    """Return an odd value, or one nested deeply."""
    if rng.random() < 0.1:
        value: Any = odd(rng)
        for _ in range(rng.choice([5, 200, 3000])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return copy.deepcopy(rng.choice(ODD))


def odd_text(rng: random.Random) -> str:
    """Return an odd value as Python writes it."""
    try:
        return str(odd(rng))
    except RecursionError:
        return "[" * 3000


def changed_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes with one to three faults."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice(BYTES)(bytearray(data), rng, others)
    return data


def changed_json(text: str, rng: random.Random) -> str:
    """Return JSON in which one value is another, a key is gone, new or there twice; or that is none any more."""
    if rng.random() < 0.2:
        return changed_bytes(text.encode(), rng).decode("utf-8", "replace")
    value = json.loads(text)
    places = list(_places(value))
    if not places:
        return _dumps(odd(rng))
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(KEYS)] = odd(rng)
        case 2:
            return _dumps(odd(rng))
        case _:
            holder[key] = odd(rng)
    return _dumps(value)


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 5000


def _places(value: Any) -> Any:
    """Yield every place in nested dicts and lists that holds a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytes:
    for _i in range(rng.choice([1, 4, 64, 1024])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _zero(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    span = len(data[start : start + rng.choice([1, 8, 512, 2**20])])
    data[start : start + span] = bytes([rng.choice([0, 255])]) * span
    return bytes(data)


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else bytes(data)
    start = rng.randrange(len(other) + 1)
    piece = other[start : start + rng.choice([4, 64, 4096, 2**20])]
    at = rng.randrange(len(data) + 1)
    return bytes(data[:at] + piece + data[at + (len(piece) if rng.random() < 0.5 else 0) :])


def _repeat(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice([8, 256, 4096])]
    return bytes(data[:start] + piece * rng.choice([2, 50]) + data[start:])


def _claim(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Overwrite a number, where it can a number near one of `MARKS`, by one that claims much or nothing."""
    found = [at for mark in MARKS for at in [data.find(mark)] if at >= 0]
    at = rng.randrange(len(data) + 1)
    if found and rng.random() < 0.8:
        at = rng.choice(found) + rng.choice([-4, 4, 8, 12, 16, 20])
    width, order = rng.choice([4, 8]), rng.choice(["big", "little"])
    claim = (rng.choice(CLAIMS) % 2 ** (8 * width)).to_bytes(width, order)
    at = max(at, 0)
    return bytes(data[:at] + claim + data[at + width :])


Change = Callable[[bytearray, random.Random, Sequence[bytes]], bytes]
BYTES: list[Change] = [_flip, _flip, _cut, _zero, _splice, _repeat, _claim, _claim]
