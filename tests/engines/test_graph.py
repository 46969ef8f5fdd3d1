"""A graph answers as its model does, on ONNX Runtime and on OpenVINO, and says what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.engines import graph, openvino_graph
from sttm.engines.graph import metadata, to_onnx
from sttm.patching.saving import MERGER
from tests.helpers import FAMILIES, lively, logits, pixels, stir

#: Families with a classifier, one kind of attention of each.
ONE_EACH = [name for name in FAMILIES if name in ("videomae", "vivit", "timesformer-divided", "vjepa2", "vit")]


@pytest.mark.extended
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("family", ONE_EACH)
def test_merged_models_of_every_family_on_both_engines(family: str, learned: bool, tmp_path: Path) -> None:
    import onnxruntime

    model = lively(family)
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    chosen = model.config._attn_implementation
    to_onnx(model, tmp_path / "model.onnx")
    assert model.config._attn_implementation == chosen
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    compiled = openvino_graph.compiled(openvino_graph.from_onnx(tmp_path / "model.onnx"), threads=1)
    for clips in (pixels(model), pixels(model, 3, seed=5)):
        expected = logits(model, clips).numpy()
        (found,) = session.run(None, {"pixels": clips.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(compiled([clips.numpy()])[0], expected, rtol=1e-4, atol=1e-4)


def test_a_file_says_what_it_is(model: Any, file: Path) -> None:
    import onnx

    read = onnx.load(file)
    said = {entry.key: entry.value for entry in read.metadata_props}
    assert json.loads(said["labels"]) == [model.config.id2label[index] for index in range(5)]
    assert json.loads(said["merging"])["compute"] == model._sttm.plan.compute
    assert [opset.version for opset in read.opset_import if not opset.domain] == [graph.OPSET]
    assert read.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the number of clips is not free"
    # The products of mergers are found by name, where they are to stay exact: those with weights too.
    weights = {weight.name for weight in read.graph.initializer}
    products = [node for node in read.graph.node if node.op_type == "MatMul" and MERGER in node.name]
    assert sum(bool(weights & set(node.input)) for node in products) == 2 * 2


def test_preprocessing_is_one_product_and_one_sum(model: Any, small_model: Path) -> None:
    preprocess = Preprocess.from_folder(small_model)
    said = json.loads(metadata(model, preprocess)["preprocess"])
    frames = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    scale, shift = (torch.tensor(said[name])[:, None, None] for name in ("scale", "shift"))
    torch.testing.assert_close(frames * scale + shift, preprocess.normalise(frames), rtol=1e-5, atol=1e-5)
    assert (said["num_frames"], said["resize"], said["crop"]) == (8, 32, [32, 32])


def test_a_model_too_large_for_one_file_is_one_sentence(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(graph, "MOST_BYTES", 1000)
    with pytest.raises(sttm.SttmError, match="an ONNX file holds 2; take the engine eager or compile"):
        to_onnx(model, tmp_path / "large.onnx")
    assert list(tmp_path.iterdir()) == []


def test_openvino_reports_to_nobody() -> None:
    code = "import sys; from sttm.engines import packages; packages.openvino()"
    code += "; print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
