"""Spatial-temporal token merging: video transformers made cheaper without making them worse.

plan = sttm.apply(model, compute=0.62)      # in place, once; returns a Plan
sttm.remove(model)                          # exactly the model it was
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sttm.auto_classes import register_when_imported

if TYPE_CHECKING:
    from sttm.calibration import calibrate
    from sttm.engines.export import export
    from sttm.errors import SttmError
    from sttm.evaluation.predict import predict
    from sttm.evaluation.stream import stream
    from sttm.merging.merger import TokenMerger
    from sttm.merging.tokens import unmerge
    from sttm.models import load, save
    from sttm.patching.api import apply, macs, remove, trace
    from sttm.patching.plan import Plan
    from sttm.visual.show import show

__version__ = "0.1.0"
__all__ = [
    "Plan",
    "SttmError",
    "TokenMerger",
    "apply",
    "calibrate",
    "export",
    "load",
    "macs",
    "predict",
    "remove",
    "save",
    "show",
    "stream",
    "trace",
    "unmerge",
]

register_when_imported()

# The module of each public name. They are imported when first used: `sttm --help` must not wait for torch.
_MODULES = {
    "Plan": "patching.plan",
    "SttmError": "errors",
    "TokenMerger": "merging.merger",
    "apply": "patching.api",
    "calibrate": "calibration",
    "export": "engines.export",
    "load": "models",
    "macs": "patching.api",
    "predict": "evaluation.predict",
    "remove": "patching.api",
    "save": "models",
    "show": "visual.show",
    "stream": "evaluation.stream",
    "trace": "patching.api",
    "unmerge": "merging.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sttm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sttm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
