"""The import rule: a file imports its own folder and the layers below it, and nothing optional while it loads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "sttm"
LAYERS = [
    *("errors", "distributed", "devices", "lock", "merging", "synth", "config", "data", "backbones", "patching"),
    *("calibration", "model_folder", "model_card", "models", "pretrained", "auto_classes", "engines"),
    *("evaluation", "training", "benchmark", "visual", "corpus", "serving", "doctor", "cli", "__main__", "__init__"),
]
OPTIONAL = {"torchvision", "timm", "ray", "gradio", "onnx", "onnxruntime", "openvino", "kornia", "accelerate", "peft"}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_down(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    layer = LAYERS.index(path.relative_to(SRC).parts[0].removesuffix(".py"))
    ours = [name.split(".")[1] for name in imports(module) if name.startswith("sttm.")]
    assert [name for name in ours if name in LAYERS and LAYERS.index(name) > layer] == []
    top = [node for node in module.body if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)]
    assert not {name.split(".")[0] for node in top for name in imports(node)} & OPTIONAL
