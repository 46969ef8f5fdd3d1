"""An engine stands where a model does, and says what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sttm
from sttm.engines import engine as engines
from sttm.engines import openvino_graph, packages
from sttm.engines.engine import CPU_ONLY, ENGINES, Engine, available, check_engine, make_engine, open_file
from sttm.evaluation.inference import forward, labels_of
from sttm.patching.saving import MERGER
from tests.helpers import logits, pixels

CPU = torch.device("cpu")


def deviation(found: Tensor, wanted: Tensor) -> float:
    """Return the largest distance of a logit in standard deviations of its clip."""
    return float(((found - wanted).abs().amax(-1) / wanted.std(-1)).max())


def test_files_run_as_the_model_does(model: Any, file: Path) -> None:
    engine = open_file(file, model)
    assert labels_of(engine) == labels_of(model)
    for clips in (pixels(model), pixels(model, 3, seed=5)):
        # As evaluation runs it, under whatever autocast.
        assert deviation(forward(engine, clips, torch.bfloat16), logits(model, clips)) < 1e-4
    with pytest.raises(ValueError, match="for clips of 8x3x32x32 and not 4x3x32x32"):
        engine(pixels(model)[:, :4])


@pytest.mark.parametrize(("dtype", "far"), [("fp32", 1e-4), ("bf16", 0.1), ("int8", 0.2)])
def test_openvino_in_fewer_bits(dtype: str, far: float, model: Any, file: Path) -> None:
    graph = openvino_graph.from_onnx(file, dtype)
    engine = Engine("openvino", dtype, model, engines._request(openvino_graph.compiled(graph, 1)))
    clips = pixels(model, 3)
    found = deviation(engine(clips).logits, logits(model, clips))
    assert found < far and (found > 1e-4) == (dtype != "fp32")
    # All products with weights of the model, and none of a merger.
    exact = [
        op for op in graph.get_ordered_ops() if MERGER in op.get_friendly_name() and op.get_type_name() == "MatMul"
    ]
    assert exact and all(value.get_element_type().to_string() == "f32" for op in exact for value in op.input_values())
    constants = [op for op in graph.get_ordered_ops() if op.get_type_name() == "Constant"]
    weights = [op for op in constants if op.get_element_type().to_string() in ("bf16", "i8")]
    assert len(weights) == (0 if dtype == "fp32" else 4 * 6 + 1)  # six in each of four blocks, and the head


def test_onnx_int8_leaves_mergers_alone(model: Any, file: Path, tmp_path: Path) -> None:
    import onnx

    from sttm.engines.graph import _quantize, _silent

    path = tmp_path / "int8.onnx"
    path.write_bytes(file.read_bytes())
    with _silent():
        _quantize(path)
    names = [weight.name for weight in onnx.load(path).graph.initializer]
    exact = [node.op_type for node in onnx.load(path).graph.node if MERGER in node.name]
    # Of two mergers: novelty, the similarity, what is alike, where it lies, and the motion map.
    assert exact.count("MatMul") == 2 * 5
    assert sum(name.endswith("_quantized") for name in names) == 4 * 6 + 1
    assert "labels" in {entry.key for entry in onnx.load(path).metadata_props}
    clips = pixels(model, 3)
    assert 1e-4 < deviation(open_file(path, model, "int8")(clips).logits, logits(model, clips)) < 0.2


@pytest.mark.parametrize("dtype", ENGINES["eager"])
def test_eager_is_the_model(dtype: str, model: Any) -> None:
    clips = pixels(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        expected = logits(model, clips)
    assert torch.equal(make_engine("eager", model, dtype)(clips).logits, expected)


def test_compile_sees_one_shape(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def compiled(module: Any) -> Any:
        def run(clips: Tensor) -> Any:
            seen.append(len(clips))
            return module(clips)

        class Same(torch.nn.Module):
            def parameters(self, recurse: bool = True) -> Any:
                return module.parameters()

            def forward(self, clips: Tensor) -> Any:
                return run(clips)

        return Same()

    monkeypatch.setattr(torch, "compile", compiled)
    engine = make_engine("compile", model)
    for clips in (pixels(model, 3), pixels(model, 2, seed=4)):
        torch.testing.assert_close(engine(clips).logits, logits(model, clips))
    assert seen == [3, 3]


@pytest.mark.parametrize(
    ("name", "dtype", "sentence"),
    [
        ("openvin", "fp32", "unknown engine 'openvin'; did you mean openvino"),
        ("eager", "int8", "engine eager has fp32 and bf16, not int8; give another dtype, or engine onnx or openvino"),
        ("onnx", "bf16", "engine onnx has fp32 and int8, not bf16"),
        ("eager", "fp33", "unknown dtype 'fp33'; did you mean fp32"),
    ],
)
def test_mistakes_are_one_sentence(name: str, dtype: str, sentence: str) -> None:
    with pytest.raises(sttm.SttmError, match=sentence):
        check_engine(name, dtype, CPU)


@pytest.mark.parametrize("name", CPU_ONLY)
def test_an_engine_that_is_not_installed_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda package: None)
    with pytest.raises(sttm.SttmError, match=r"not installed: pip install 'sttm\[export\]'"):
        check_engine(name, "fp32", CPU)
    assert name not in available("fp32", CPU)
    with pytest.raises(sttm.SttmError, match="on the CPU only"):
        check_engine(name, "fp32", torch.device("cuda"))


def test_no_compiler_no_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "compile" not in available("fp32", CPU)
    with pytest.raises(sttm.SttmError, match=r"install g\+\+"):
        check_engine("compile", "fp32", CPU)
