"""How a merged model is written to a folder: nothing that reads it can take it for the plain model.

The folder is transformers' own, with two differences. Its config.json has the model type "sttm", which transformers
refuses unless sttm is imported, and keeps the model's own config inside. `sttm.json` says where the mergers are; their
weights lie among the model's own.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttm.errors import SttmError
from sttm.patching.plan import MergerPlan, Plan

PLAN_FILE = "sttm.json"
#: transformers' name of a model whose tokens merge, and where its config keeps the type and config of the model itself.
#: A type inside the inner config would let the family's own config class read it as if nothing were merged.
MODEL_TYPE = "sttm"
INNER_TYPE, INNER = "backbone_type", "backbone_config"


class SavePretrained:
    """Stand in for `model.save_pretrained` while the model is merged; `push_to_hub` goes through it too."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan

    def __call__(self, save_directory: str | Path, *, push_to_hub: bool = False, **options: Any) -> None:
        # Names as they are: the older names that some families are published under have no place for a merger.
        options["save_original_format"] = False
        hub = {name: options.pop(name) for name in ("repo_id", "commit_message", "private", "token") if name in options}
        type(self.model).save_pretrained(self.model, save_directory, **options)
        if options.get("is_main_process", True):
            write_plan(Path(save_directory), self.plan)
        if push_to_hub:
            self.model.push_to_hub(hub.pop("repo_id", None) or Path(save_directory).name, **hub)


def write_plan(folder: Path, plan: Plan) -> None:
    """Turn a folder that transformers saved into that of a merged model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    merged = {
        "model_type": MODEL_TYPE,
        "architectures": ["SttmMerged"],
        INNER_TYPE: config.pop("model_type"),
        INNER: config,
    }
    merged |= {key: config.pop(key) for key in ("dtype", "transformers_version") if key in config}
    (folder / "config.json").write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
    (folder / PLAN_FILE).write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")


def check_merged(folder: Path) -> None:
    """Raise SttmError for a plan beside the config of a plain model, which would load without its mergers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # whoever loads it says what is wrong
    if (folder / PLAN_FILE).exists() and isinstance(config, dict) and config.get("model_type") != MODEL_TYPE:
        raise SttmError(
            f"{folder} has a {PLAN_FILE} and the config.json of a plain model; save the merged model again, or remove "
            f"{PLAN_FILE} to load the plain one"
        )


def read_plan(path: Path) -> Plan:
    """Read a plan from its file; raise SttmError if the file is missing or says something else."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["mergers"] = tuple(MergerPlan(**merger) for merger in fields["mergers"])
        fields["clip_shape"] = tuple(fields["clip_shape"])
        return Plan(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SttmError(f"{path} does not say where the mergers are ({error}); save the model again") from error
