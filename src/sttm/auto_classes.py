"""Let transformers' auto classes load merged models, as soon as both sttm and transformers are imported.

`AutoModelForVideoClassification.from_pretrained(folder)` then gives back a merged model from a folder that a merged one
was saved to. Nothing heavy is imported here: `import sttm` must stay quick, whether transformers is imported before or
after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Register with transformers now where it is imported, else when it will be."""
    for name, register in {_CONFIGS: _register_config, _MODELS: _register_models}.items():
        if name in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, _AfterImport(name, register))


class _AfterImport(MetaPathFinder, Loader):
    """Import one module as ever, and call a function when that is done."""

    def __init__(self, name: str, done: Callable[[], None]) -> None:
        self.name, self.done = name, done
        self.loader: Any = None

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader  # type: ignore[union-attr]
        self.loader.exec_module(module)
        self.done()


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from sttm.pretrained import MergedConfig

    CONFIG_MAPPING.register(MergedConfig.model_type, MergedConfig, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    from sttm import pretrained

    _register_config()
    auto: Any = modeling_auto  # its mappings are typed for classes of transformers
    config = pretrained.MergedConfig
    auto.MODEL_MAPPING.register(config, pretrained.MergedModel, exist_ok=True)
    auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING.register(config, pretrained.MergedForVideoClassification, exist_ok=True)
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.register(config, pretrained.MergedForImageClassification, exist_ok=True)
