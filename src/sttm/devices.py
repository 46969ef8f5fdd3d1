"""Devices and dtypes by name, and the machine in words.

This file belongs to the layer of `distributed`: everything that runs a model may import it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from sttm.errors import SttmError, unknown

#: The dtypes that a model can run in, by the names that options and configs use; all but fp32 by autocast.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name in `DTYPES`; raise SttmError for any other name."""
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def device_of(name: str = "auto") -> torch.device:
    """Return the device of a name, CUDA where there is one for "auto"; raise SttmError for one that torch lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SttmError(f"unknown device {name!r}; choose auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SttmError(f"device={name}, but torch sees no CUDA device; use device=cpu, or see sttm doctor")
    return device


def machine(device: torch.device) -> str:
    """Return in words where a timing comes from: GPU, processor, threads, torch."""
    threads = torch.get_num_threads()
    parts = [f"{_processor()} ({threads} thread{'s' * (threads != 1)} of {os.cpu_count()})"]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def _processor() -> str:
    """Return the name of the processor; Python's own answer is empty on many Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
