"""A model as an ONNX graph, for any number of clips.

Attention is written out while it is traced, since converters have no form of a fused one with a bias. Everything that a
graph needs besides its weights goes into its metadata: labels, preprocessing, what was merged.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import sttm
from sttm.backbones import backbone_of
from sttm.engines.packages import require
from sttm.errors import SttmError, first_line
from sttm.patching import api
from sttm.patching.saving import MERGER

if TYPE_CHECKING:
    from sttm.data.transforms.preprocess import Preprocess

#: Version of the ONNX operators that graphs use: the first with GELU, which ONNX Runtime has had since 1.17.
OPSET = 20
INPUT, OUTPUT = "pixels", "logits"
#: Clips that a model is traced on; any other number goes as well.
TRACED = 2
#: Numbers of a constant that is folded before a graph is written.
SMALL = 64
#: Under what torch's exporter says which modules a node comes from.
SCOPES = "pkg.torch.onnx.name_scopes"
#: ONNX's own limit of one file, less some room for the graph.
MOST_BYTES = 2**31 - 2**24


def shared_copy(model: nn.Module) -> Any:
    """Return a copy with modules of its own and the same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def pixels_shape(model: nn.Module, clips: int) -> tuple[int, ...]:
    """Return the shape of the pixels of so many clips that a model, plain or merged, takes."""
    inner = api.unwrap(model)
    backbone = backbone_of(inner)
    clip = api.plan_of(inner).clip_shape if api.is_merged(inner) else backbone.clip_shape(inner)
    return backbone.pixels_shape(clips, clip)


def metadata(model: nn.Module, preprocess: Preprocess | None) -> dict[str, str]:
    """Return what a graph says about itself: texts by name, JSON but for the two first.

    Pixels are frames * scale + shift, for levels from 0 to 255, a number a colour.
    """
    inner: Any = api.unwrap(model)
    labels = inner.config.id2label
    said = {"sttm": sttm.__version__, "model_type": str(inner.config.model_type)}
    said["labels"] = json.dumps([labels[index] for index in range(len(labels))])
    if api.is_merged(inner):
        plan = api.plan_of(inner)
        said["merging"] = json.dumps({"method": plan.method, "learned": plan.learned, "compute": plan.compute})
    if preprocess is not None:
        scale = [preprocess.rescale_factor / std for std in preprocess.std]
        shift = [(preprocess.offset - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
        settings: dict[str, Any] = {"num_frames": preprocess.sampling.num_frames, "sampling": preprocess.sampling.mode}
        settings |= {"stride": preprocess.sampling.stride, "resize": preprocess.resize, "crop": preprocess.crop}
        settings |= {"resample": preprocess.resample, "scale": scale, "shift": shift}
        said["preprocess"] = json.dumps(settings)
    return said


def to_onnx(model: nn.Module, path: Path, said: Mapping[str, str] | None = None, dtype: str = "fp32") -> None:
    """Write the graph of a model: pixels [B, T, C, H, W] to logits [B, K], for any B.

    Args:
        said: the metadata, see `metadata`.
        dtype: "fp32"; or "int8", weights of 8 bits whose inputs are rounded as they come, by ONNX Runtime.

    Raises:
        SttmError: if a package is not installed, the model is larger than one file can be, or has no such form.
    """
    require("onnx", "onnxscript", *(["onnxruntime"] if dtype == "int8" else []))
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > MOST_BYTES:
        has = f"this model has {size / 2**30:.1f} GiB of weights and an ONNX file holds 2"
        raise SttmError(f"{has}; take the engine eager or compile, which need no file")
    with _silent():
        program = _trace(model)
        program.model.metadata_props.update(said or {})
        program.save(path, external_data=False)
        if dtype == "int8":
            _quantize(path)


def _trace(model: nn.Module) -> Any:
    """Return torch's ONNX program of a model."""
    from onnxscript.optimizer import fold_constants

    example = torch.randn(pixels_shape(model, TRACED), generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1, max=1024)
    try:
        program = torch.onnx.export(
            _Logits(model), (example,), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: batch},), verbose=False, optimize=False,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        what = f"this model has no form in ONNX ({first_line(error)[:200]})"
        raise SttmError(f"{what}; take the engine eager or compile") from error
    assert program is not None
    # Engines optimise graphs themselves; the exporter's passes would take longer than all else. Small constants are
    # folded, though, as ONNX Runtime warns of those that it cannot fold.
    fold_constants(program.model, input_size_limit=SMALL, output_size_limit=SMALL)
    _turn_weights(program.model.graph)
    for node in program.model.graph:
        # Products of a merger are known by name, in every form that the graph gets.
        if MERGER in node.metadata_props.get(SCOPES, ""):
            node.name = f"{MERGER}{node.name}"
    return program


def _turn_weights(graph: Any) -> None:
    """Store each matrix of weights the way it is multiplied, under its own name with .T behind it."""
    import onnx_ir

    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or len(source.shape) != 2:
            continue
        name = f"{source.name}.T"
        if name not in graph.initializers:
            matrix = np.ascontiguousarray(source.const_value.numpy().T)
            graph.register_initializer(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(matrix, name=name)))
        turned = graph.initializers[name]
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], turned)
        graph.remove(node, safe=True)
        if not source.uses():
            del graph.initializers[source.name]


def _quantize(path: Path) -> None:
    """Round the weights of the products in a file to 8 bits, but for those of the mergers, which are float32 always."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # The quantizer turns some weights, and then stumbles over the shapes that the file says they have.
    del model.graph.value_info[:]
    exact = [node.name for node in model.graph.node if MERGER in node.name]
    quantize_dynamic(
        model, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
        nodes_to_exclude=exact, extra_options={"MatMulConstBOnly": True},  # no product of attention or of a merger
    )  # fmt: skip


class _Logits(nn.Module):
    """A model that returns logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = shared_copy(api.unwrap(model)).cpu().float().eval()
        if getattr(own.config, "_attn_implementation", "eager") != "eager":
            own.set_attn_implementation("eager")
        self.model = own

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels).logits
        return logits


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's own warnings from the user, who can do nothing about them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
