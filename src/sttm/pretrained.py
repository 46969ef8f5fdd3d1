"""Merged models for transformers' auto classes: a config of type "sttm", and classes that load what it describes.

What they load is the model itself, an instance of its own class, with the mergers in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from sttm.errors import SttmError


class MergedConfig(PreTrainedConfig):
    """The config of a merged model: the type and the config of the model itself."""

    model_type = "sttm"

    def __init__(self, backbone_type: str = "", backbone_config: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.backbone_type, self.backbone_config = backbone_type, backbone_config or {}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Make a config as transformers does, and keep what the caller sets (`num_labels`, ...) for the model's own."""
        asked = dict(options)
        found = super().from_dict(config_dict, **options)
        config, unused = found if isinstance(found, tuple) else (found, {})
        # Its dtype is read where it lies; the others say where it came from.
        apart = {*unused, "dtype", "torch_dtype", "name_or_path", "return_unused_kwargs"}
        config.asked = {key: value for key, value in asked.items() if key not in apart and key[0] != "_"}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what belongs into a config.json."""
        return {key: value for key, value in super().to_dict().items() if key != "asked"}

    def inner(self) -> Any:
        """Return the config of the model itself, as its family's own class, with what the caller set."""
        from sttm.backbones.config_check import make_config

        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        config = make_config(self.backbone_type, {**self.backbone_config, "dtype": dtype}, Path("config.json"), None)
        for key, value in getattr(self, "asked", {}).items():
            setattr(config, f"_{key}" if key == "attn_implementation" else key, value)
        return config


class _Merged:
    """What an auto class calls for a merged folder; never an instance, always the model itself."""

    config_class = MergedConfig
    auto_class: str

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, config: MergedConfig, **options: Any) -> Any:
        """Load the model of a folder or hub id, put its mergers in, and load their weights.

        With `output_loading_info`, what is missing or left over is in that info, as ever; else it is an error.
        """
        import transformers
        from transformers.utils.hub import cached_file

        from sttm import models
        from sttm.model_folder import check_loaded, check_weights, read_header
        from sttm.patching.saving import MERGER, PLAN_FILE, read_plan

        where = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        hub = {key: options[key] for key in where if options.get(key) is not None}
        plan_file = cached_file(name, PLAN_FILE, _raise_exceptions_for_missing_entries=False, **hub)
        if plan_file is None:
            raise SttmError(f"{name} says that it was saved merged and has no {PLAN_FILE}; save the model again")
        auto = getattr(transformers, cls.auto_class)
        wants_info = options.pop("output_loading_info", False)
        with models.quiet():
            model, info = auto.from_pretrained(name, *args, config=config.inner(), output_loading_info=True, **options)
        folder = Path(plan_file).parent
        unsaved = models.install_saved(model, folder, read_plan(Path(plan_file)), strict=not wants_info)
        info["missing_keys"] = {*info["missing_keys"], *unsaved}
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if MERGER not in key}
        _say_mismatched(info["mismatched_keys"])
        header = read_header(folder)
        if wants_info:
            placed = {key: of for key, of in header.items() if key not in info["unexpected_keys"]}
            check_weights(model, placed, name, new=info["missing_keys"])
            return model, info
        if cls.auto_class != "AutoModel":  # a base model has no place for a head, and may have a pooler of its own
            new = {wrong[0] for wrong in info["mismatched_keys"]} if options.get("ignore_mismatched_sizes") else set()
            kept = {"mismatched_keys": set(), "missing_keys": set(info["missing_keys"]) - new} if new else {}
            check_loaded({**info, **kept}, model, folder, name)
        check_weights(model, header, name)
        return model

    @classmethod
    def _from_config(cls, config: MergedConfig, **options: Any) -> Any:
        raise SttmError(
            "a merged model cannot be made from its config alone; use from_pretrained, or make the plain model and "
            "then call sttm.apply"
        )


def _say_mismatched(mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Log what has new weights for its shape, as transformers does; its own report would name the mergers too."""
    logger = logging.get_logger("transformers.modeling_utils")
    for key, found, wanted in sorted(mismatched):
        sizes = f"ckpt: {tuple(found)} vs model: {tuple(wanted)}"
        logger.warning(f"{key} | MISMATCH | Reinit due to size mismatch - {sizes}")


class MergedForVideoClassification(_Merged):
    auto_class = "AutoModelForVideoClassification"


class MergedForImageClassification(_Merged):
    auto_class = "AutoModelForImageClassification"


class MergedModel(_Merged):
    auto_class = "AutoModel"
