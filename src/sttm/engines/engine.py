"""Engines: what runs a model's forward.

An `Engine` stands where a model does, in prediction, evaluation and timing: it maps pixels [B, T, C, H, W] to an output
with `.logits` [B, K], and has the model's config. It runs in its own dtype whatever autocast says.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sttm.devices import DTYPES
from sttm.engines import openvino_graph
from sttm.engines.graph import INPUT, pixels_shape, to_onnx
from sttm.engines.packages import missing, require
from sttm.errors import SttmError, unknown
from sttm.patching import api

#: The engines, and the dtypes that each offers.
ENGINES = {
    "eager": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
#: The packages that each needs, and those that run on the CPU alone.
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
CPU_ONLY = tuple(PACKAGES)


class Engine(nn.Module):
    """A model on an engine.

    Attributes:
        name, dtype: which engine, and what it computes in.
        config: that of the model.
    """

    def __init__(self, name: str, dtype: str, model: Any, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.dtype, self.config = name, dtype, api.unwrap(model).config
        self.run = run
        self.clip = pixels_shape(model, 1)[1:] if name in CPU_ONLY else None
        # Whoever asks where a model is looks at its first parameter.
        device = next(api.unwrap(model).parameters()).device
        self.place = nn.Parameter(torch.zeros(0, device=device), requires_grad=False)

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        """Return the logits [B, K], as `.logits`.

        Raises:
            ValueError: for clips of another shape than the graph of a CPU engine was made for.
        """
        if self.clip is not None and pixels.shape[1:] != self.clip:
            given, wanted = ("x".join(map(str, shape)) for shape in (pixels.shape[1:], self.clip))
            raise ValueError(f"its graph is for clips of {wanted} and not {given}")
        return SimpleNamespace(logits=self.run(pixels))


def check_engine(name: str, dtype: str, device: torch.device) -> None:
    """Raise SttmError for an engine that there is not, that is not installed, or lacks a dtype or a device."""
    if name not in ENGINES:
        raise unknown("engine", name, [*ENGINES, "auto"])
    if dtype not in ENGINES[name]:
        check_dtype(dtype)
        others = [other for other, dtypes in ENGINES.items() if dtype in dtypes]
        has = f"engine {name} has {' and '.join(ENGINES[name])}, not {dtype}"
        raise SttmError(f"{has}; give another dtype, or engine {' or '.join(others)}")
    if name in CPU_ONLY and device.type != "cpu":
        raise SttmError(f"engine {name} runs on the CPU only; give --device cpu, or --engine compile")
    require(*PACKAGES.get(name, ()))
    if name == "compile" and not can_compile(device):
        raise SttmError("engine compile needs a C++ compiler and there is none; install g++, or take --engine openvino")


def check_dtype(dtype: str) -> None:
    """Raise SttmError for a dtype that no engine has."""
    known = list(dict.fromkeys(dtype for dtypes in ENGINES.values() for dtype in dtypes))
    if dtype not in known:
        raise unknown("dtype", dtype, known)


def available(dtype: str, device: torch.device) -> list[str]:
    """Return the engines that can run in a dtype on a device."""
    found = []
    for name, dtypes in ENGINES.items():
        fits = dtype in dtypes and (device.type == "cpu" or name not in CPU_ONLY)
        if fits and not missing(*PACKAGES.get(name, ())) and (name != "compile" or can_compile(device)):
            found.append(name)
    return found


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile has what it needs: a C++ compiler on the CPU, triton on a GPU."""
    if device.type != "cpu":
        return not missing("triton")
    from torch._inductor import config

    named = config.cpp.cxx
    compilers = [named] if isinstance(named, str) else [name for name in named if name]
    return any(shutil.which(compiler) for compiler in compilers)


def make_engine(name: str, model: nn.Module, dtype: str = "fp32") -> Engine:
    """Put a model, plain or merged, on an engine; it keeps its device.

    Raises:
        SttmError: see `check_engine`; also for a model that an engine has no form of.
    """
    check_engine(name, dtype, next(model.parameters()).device)
    model = model.eval()
    run = {"eager": _eager, "compile": _compile, "onnx": _onnx, "openvino": _openvino}[name](model, dtype)
    return Engine(name, dtype, model, run)


def open_file(path: Path, model: nn.Module, dtype: str = "fp32") -> Engine:
    """Return an engine that runs a file which was exported from the model."""
    run = _session(path) if path.suffix == ".onnx" else _request(openvino_graph.compiled(path, torch.get_num_threads()))
    return Engine("onnx" if path.suffix == ".onnx" else "openvino", dtype, model, run)


def _eager(model: Any, dtype: str) -> Callable[[Tensor], Tensor]:
    device, own = next(model.parameters()).device, DTYPES[dtype]

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, own, enabled=own != torch.float32):
            logits: Tensor = model(pixels.to(device)).logits
        return logits

    return run


def _compile(model: Any, dtype: str) -> Callable[[Tensor], Tensor]:
    run_whole, most = _eager(torch.compile(model), dtype), 0

    def run(pixels: Tensor) -> Tensor:
        # The last batch of a list is filled up with black: another shape would be compiled again.
        nonlocal most
        most = max(most, len(pixels))
        filled = torch.cat((pixels, pixels.new_zeros(most - len(pixels), *pixels.shape[1:])))
        return run_whole(filled).unflatten(0, (most, -1))[: len(pixels)].flatten(0, 1)

    return run


def _onnx(model: nn.Module, dtype: str) -> Callable[[Tensor], Tensor]:
    with TemporaryDirectory(prefix="sttm-") as folder:
        to_onnx(model, Path(folder) / "model.onnx", dtype=dtype)
        return _session(Path(folder) / "model.onnx")


def _session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: pixels.float().numpy()})[0])

    return run


def _openvino(model: nn.Module, dtype: str) -> Callable[[Tensor], Tensor]:
    graph = openvino_graph.make_graph(model, dtype)
    return _request(openvino_graph.compiled(graph, torch.get_num_threads()))


def _request(compiled: Any) -> Callable[[Tensor], Tensor]:
    request, lock = compiled.create_infer_request(), Lock()

    def run(pixels: Tensor) -> Tensor:
        with lock:  # a request has one set of buffers
            return torch.from_numpy(request.infer([pixels.float().numpy()])[0].copy())

    return run
