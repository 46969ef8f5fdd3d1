"""A model as an OpenVINO graph, in fp32, bf16 or int8.

OpenVINO's own bf16 rounds everything, also where a token is and what is most novel, so that other tokens merge: on
`sttm-words` it agreed with fp32 on 96 of 100 clips. Here the products with the weights of the model run in fewer bits,
which is where the time goes. All else, the mergers, attention and the sums between blocks, stays in float32: 99 of 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from sttm.engines import packages
from sttm.engines.graph import to_onnx
from sttm.patching.saving import MERGER

#: Numbers of an input of an int8 product that are rounded to one scale.
GROUP = 128


def make_graph(model: nn.Module, dtype: str = "fp32", said: Mapping[str, str] | None = None) -> Any:
    """Return the openvino.Model of a model, with metadata as its runtime information; see `graph.to_onnx`."""
    with TemporaryDirectory(prefix="sttm-") as folder:
        to_onnx(model, Path(folder) / "model.onnx", said)
        return from_onnx(Path(folder) / "model.onnx", dtype, said)


def from_onnx(path: Path, dtype: str = "fp32", said: Mapping[str, str] | None = None) -> Any:
    """Return the openvino.Model of an ONNX file; see `make_graph`."""
    graph = packages.openvino().convert_model(path)
    if dtype != "fp32":
        _narrow(graph, dtype)
    for name, text in (said or {}).items():
        graph.set_rt_info(text, [name])
    return graph


def save(graph: Any, path: Path) -> None:
    """Write a graph as a pair of files, PATH.xml and PATH.bin; its weights as they are, not in half precision."""
    packages.openvino().save_model(graph, path, compress_to_fp16=False)


def compiled(graph: Any, threads: int) -> Any:
    """Return a graph, or the file of one, ready to run in the dtypes that it names."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(GROUP)
    return packages.openvino().Core().compile_model(graph, "CPU", settings)


def _narrow(graph: Any, dtype: str) -> None:
    """Replace the products with the weights of a model, those of its mergers aside, by ones in fewer bits."""
    for product in graph.get_ordered_ops():
        own = product.get_type_name() == "MatMul" and MERGER not in product.get_friendly_name()
        found = _weight(product.input_value(1)) if own else None
        if found is not None:
            attributes = product.get_attributes()
            weight_OI = found if attributes["transpose_b"] else found.T
            make = _in_bf16 if dtype == "bf16" else _in_int8
            replaced = make(product.input_value(0), weight_OI, attributes["transpose_a"])
            product.output(0).replace(replaced.output(0))
    graph.validate_nodes_and_infer_types()


def _weight(value: Any) -> np.ndarray | None:
    """Return the matrix that an input of a product is; None where it is computed."""
    node = value.get_node()
    if node.get_type_name() != "Constant" or len(node.shape) != 2:
        return None
    return np.asarray(node.data)


def _in_bf16(x: Any, weight_OI: np.ndarray, turned: bool) -> Any:
    import openvino.opset15 as ops
    from openvino import Type

    weight = ops.constant(np.ascontiguousarray(weight_OI), Type.bf16)
    return ops.convert(ops.matmul(ops.convert(x, "bf16"), weight, turned, True), "f32")


def _in_int8(x: Any, weight_OI: np.ndarray, turned: bool) -> Any:
    """Return a product with weights of 8 bits and a scale a row; OpenVINO rounds the other input by groups."""
    import openvino.opset15 as ops

    scale_O1 = np.maximum(np.abs(weight_OI).max(1, keepdims=True), np.finfo(np.float32).tiny) / 127
    whole = ops.convert(ops.constant(np.round(weight_OI / scale_O1).astype(np.int8)), "f32")
    return ops.matmul(x, ops.multiply(whole, ops.constant(scale_O1.astype(np.float32))), turned, True)
