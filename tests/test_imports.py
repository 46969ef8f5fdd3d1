"""The import table: every file imports lower floors only, and nothing optional while it loads."""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted((SRC / "sttm").rglob("*.py"))
OPTIONAL = {"torchvision", "timm", "ray", "gradio", "torchcodec"}

FLOORS = {"errors": 0, "merging": 1, "config": 1, "metrics": 1, "data": 2, "backbones": 2, "plugging": 3}
FLOORS |= {
    "models": 4,
    "scoring": 4,
    "processes": 4,
    "results": 4,
    "training": 5,
    "engines": 6,
    "": 7,
}  # "" is the top: sttm itself, and cli
STRANGERS = {("data", "merging"), ("backbones", "config"), ("backbones", "metrics")}  # below, yet not known
ENGINES_THAT_CALL = {
    "train": {"evaluate"},
    "pipeline": {"evaluate"},
    "serve": {"predict", "show"},
    "demo": {"show"},
}  # no others

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))


def imports(path: Path, *, inside_functions: bool = True) -> Iterator[str]:
    """Dotted names that a file imports: 'sttm.data.video.read.read' for `from .video import read` in data/."""
    package = ".".join(path.relative_to(SRC).parent.parts)
    nodes = ast.parse(path.read_text()).body
    if not inside_functions:
        nodes = [node for node in nodes if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wing_and_file(dotted: str) -> tuple[str, str]:
    """('data', 'video') for 'sttm.data.video.read.read'; ('', '') for 'sttm.apply' or 'sttm.cli'."""
    _, wing, file, *_ = [*dotted.split("."), "", ""]
    return (wing, file) if wing in FLOORS else ("", "")


def test_every_wing_has_a_floor():
    wings = {path.relative_to(SRC).parts[1].removesuffix(".py") for path in FILES}
    assert wings <= {*FLOORS, "__init__", "__main__", "cli"}


@every_file
def test_imports_go_down(path: Path):
    wing, file = wing_and_file(".".join(path.relative_to(SRC).with_suffix("").parts))
    for name in imports(path):
        if name.split(".")[0] != "sttm":
            continue
        other_wing, other_file = wing_and_file(name)
        if other_wing != wing:
            assert FLOORS[other_wing] < FLOORS[wing], f"{name} is not below {wing or 'sttm'}"
            assert (wing, other_wing) not in STRANGERS, f"{name} is nothing that {wing} knows of"
        elif wing == "engines":
            assert other_file in {file, *ENGINES_THAT_CALL.get(file, ())}, f"{name}: engines are strangers"


@every_file
def test_nothing_optional_is_imported_while_loading(path: Path):
    assert not {name.split(".")[0] for name in imports(path, inside_functions=False)} & OPTIONAL
