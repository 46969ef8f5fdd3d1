"""Merged models for transformers' auto classes: a config of type "sttm", and classes that load what it describes.

What they load is the model itself, an instance of its own class, with the mergers in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from sttm.errors import SttmError


class MergedConfig(PreTrainedConfig):
    """The config of a merged model: the type and the config of the model itself."""

    model_type = "sttm"

    def __init__(self, backbone_type: str = "", backbone_config: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.backbone_type, self.backbone_config = backbone_type, backbone_config or {}

    def inner(self) -> Any:
        """Return the config of the model itself, as its family's own class."""
        from transformers import AutoConfig

        try:
            family = AutoConfig.for_model(self.backbone_type)
        except ValueError as error:
            raise SttmError(
                f"backbone_type={self.backbone_type!r} in config.json is no model type that transformers knows; "
                "save the model again with sttm.save"
            ) from error
        return type(family).from_dict({**self.backbone_config, "dtype": self.dtype})


class _Merged:
    """What an auto class calls for a merged folder; never an instance, always the model itself."""

    config_class = MergedConfig
    auto_class: str

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, config: MergedConfig, **options: Any) -> Any:
        """Load the model of a folder or hub id, put its mergers in, and load their weights."""
        import transformers
        from transformers.utils.hub import cached_file

        from sttm import models
        from sttm.patching.saving import PLAN_FILE

        where = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        hub = {key: options[key] for key in where if options.get(key) is not None}
        plan_file = cached_file(name, PLAN_FILE, _raise_exceptions_for_missing_entries=False, **hub)
        if plan_file is None:
            raise SttmError(f"{name} says that it was saved merged and has no {PLAN_FILE}; save the model again")
        auto = getattr(transformers, cls.auto_class)
        wants_info = options.pop("output_loading_info", False)
        with models.quiet():
            model, info = auto.from_pretrained(name, *args, config=config.inner(), output_loading_info=True, **options)
        models.install_saved(model, Path(plan_file).parent)
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if ".merger." not in key}
        return (model, info) if wants_info else model

    @classmethod
    def _from_config(cls, config: MergedConfig, **options: Any) -> Any:
        raise SttmError(
            "a merged model cannot be made from its config alone; use from_pretrained, or make the plain model and "
            "then call sttm.apply"
        )


class MergedForVideoClassification(_Merged):
    auto_class = "AutoModelForVideoClassification"


class MergedForImageClassification(_Merged):
    auto_class = "AutoModelForImageClassification"


class MergedModel(_Merged):
    auto_class = "AutoModel"
