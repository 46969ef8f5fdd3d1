"""JSON and YAML that would end the parser, expand without end or hold what is no plain value: a sentence each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sttm
from sttm.config import load
from sttm.config.parsing import parse_json, parse_yaml, read_json

CONFIG = """
data: {root: videos, train: {list: a.csv}, validation: {list: b.csv}}
model: {start: sttm-motion-plain}
optimizer: {epochs: 3}
run: {output: runs/a}
"""
#: Ten levels of ten: ten billion values, from 500 bytes.
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 11))


def sentence(call) -> str:
    with pytest.raises(sttm.SttmError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 500 and not said.endswith(".")
    return said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "aliases that expand"),
        (MERGES, "aliases that expand"),
        ("a: &a [*a]", "aliases that expand"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "{a: " * 5_000, "nested too deeply"),
        ("a: " + "9" * 5_000, "a number of 5,000 digits"),
        ("a: !!set {b, c}", "not allowed"),
        ("a: !!binary aGk=", "not allowed"),
        ("a: !!timestamp 2024-01-01", "not allowed"),
        ("a: !!python/object:os.system {}", "not YAML"),
        ("a: !!int 5-1", "not YAML"),
        ("{[1]: 2}", "not YAML"),
        ("2: 3", "data is missing"),
    ],
)
def test_yaml_bombs(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert part in sentence(lambda: load(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("optimizer.lr=2024-01-01", "optimizer.lr='2024-01-01'"),
        ("optimizer.lr=2024-13-45", "optimizer.lr='2024-13-45'"),
        ("optimizer.batch_size=2024-01-01", "optimizer.batch_size='2024-01-01'"),
        ("optimizer.batch_size=" + "9" * 5_000, "a number of 5,000 digits"),
        ("optimizer.batch_size=" + "9" * 400, "a number of 400 digits"),
        ("optimizer.lr=" + "[" * 2_000, "nested too deeply"),
        ("optimizer.lr=[" + "x" * 5_000 + "]", "optimizer.lr="),
    ],
)
def test_yaml_values_that_no_setting_takes(override: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert part in sentence(lambda: load(tmp_path / "c.yaml", [override]))


def test_a_date_is_a_text_and_aliases_are_read(tmp_path: Path) -> None:
    """A class, or a folder, may be named like one."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace("root: videos", "root: 2024-01-01, without: [2024-01-02]"))
    settings = load(tmp_path / "c.yaml")
    assert settings.data.root == Path("2024-01-01") and settings.data.without == ("2024-01-02",)
    assert parse_yaml("a: &a {b: 0x1F}\nc: *a\nd: {<<: *a, e: 1_000}", "here") == {
        "a": {"b": 31}, "c": {"b": 31}, "d": {"b": 31, "e": 1000},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "a number of 5,000 digits"),
        ('{"a": 1' + "0" * 400 + "}", "a number of 401 digits"),
        ('{"a": 1e999}', "1e999, which is too large"),
        ('{"a": NaN}', "NaN, which is no number"),
        ('{"a": -Infinity}', "-Infinity, which is no number"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ('{"a"', "not valid JSON"),
    ],
)
def test_json_bombs(text: str | bytes, part: str, tmp_path: Path) -> None:
    assert part in sentence(lambda: parse_json(text, "here"))
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "config.json").write_bytes(data)
    assert part in sentence(lambda: read_json(tmp_path / "config.json"))


def test_json_that_is_no_object_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    assert "holds a list" in sentence(lambda: read_json(tmp_path / "config.json"))
    assert "does not exist" in sentence(lambda: read_json(tmp_path / "nowhere.json"))
    values = {"a": [1, -2.5, None, True, "b"], "c": {"d": 2**63 - 1}}
    assert parse_json(json.dumps(values), "here") == values
