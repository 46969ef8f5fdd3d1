"""How a merged model is written to a folder: nothing that reads it can take it for the plain model.

The folder is transformers' own, with two differences. Its config.json has the model type "sttm", which transformers
refuses unless sttm is imported, and keeps the model's own config inside. `sttm.json` says where the mergers are; their
weights lie among the model's own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sttm.backbones import backbone_of
from sttm.config.parsing import read_json
from sttm.errors import SttmError, few, shown
from sttm.patching.plan import Plan, build_merger
from sttm.patching.schedule import check_choice

PLAN_FILE = "sttm.json"
#: transformers' name of a model whose tokens merge, and where its config keeps the type and config of the model itself.
#: A type inside the inner config would let the family's own config class read it as if nothing were merged.
MODEL_TYPE = "sttm"
INNER_TYPE, INNER = "backbone_type", "backbone_config"
#: What the names of a merger's tensors have in them, after the path to its block.
MERGER = ".merger."


class SavePretrained:
    """Stand in for `model.save_pretrained` while the model is merged; `push_to_hub` goes through it too."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan

    def __call__(self, save_directory: str | Path, *, push_to_hub: bool = False, **options: Any) -> None:
        # transformers saves some families under the names of published checkpoints. Who hands in a state dict, as the
        # Trainer does even where it is None, reads the file back by the model's own names.
        options.setdefault("save_original_format", "state_dict" not in options)
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


def read_plan(path: Path) -> Plan:
    """Read a plan from its file; raise SttmError if the file is missing or says anything else."""
    from pydantic import TypeAdapter, ValidationError

    values = read_json(path)
    unknown = values.keys() - {field.name for field in fields(Plan)}
    if unknown:
        raise SttmError(f"{path} has {few(unknown)}, which no plan has; save the model again")
    try:
        # JSON has no tuples: in this mode, and no other, a list is one.
        return TypeAdapter(Plan).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"]
        wrong = f"{key} is {shown(first['input'])}, but the {message[:1].lower()}{message[1:]}"
        raise SttmError(f"{path} does not say where the mergers are ({wrong}); save the model again") from None


def check_plan(plan: Plan, model: Any, path: Path) -> None:
    """Check every field of a plan against the others and against the plain model that it is for.

    Raises:
        SttmError: for the first that does not fit.
    """
    backbone = backbone_of(model)

    def need(right: bool, what: str) -> None:
        if not right:
            raise SttmError(f"{path} does not fit its model: {what}; save the model again")

    need(plan.family in ("", backbone.family), f"family is {shown(plan.family)} and the model is {backbone.family}")
    need(0 < plan.macs_after <= plan.macs_before < 2**60, "macs_after is not above 0 and at most macs_before")
    need(abs(plan.compute - plan.macs_after / plan.macs_before) < 1e-6, f"compute is {plan.compute}, not their ratio")
    need(0 <= plan.target <= 1, f"target is {plan.target}, not a share")
    need(plan.restore or not backbone.restores, f"restore is false, which {backbone.family} cannot do without")
    need(bool(plan.mergers) == (plan.compute < 1), f"compute is {plan.compute:g} with {len(plan.mergers)} mergers")
    need(all(0 < length < 2**20 for length in plan.clip_shape), f"clip_shape is {plan.clip_shape}")
    with named(path):
        check_choice(backbone, model, plan)
        grid = backbone.grid(model, plan.clip_shape)
    depth, layer, frames, tokens = len(backbone.blocks(model)), -1, grid.frames, grid.tokens
    for merger in plan.mergers:
        need(layer < merger.layer < depth, f"a merger at block {merger.layer}, of {depth} blocks in rising order")
        before = (merger.frames_before, merger.tokens_before)
        need(before == (frames, tokens), f"block {merger.layer} gets {frames} x {tokens} tokens, not {before}")
        with named(path), torch.device("meta"):
            build_merger(backbone, model, plan, merger)
        layer, frames, tokens = merger.layer, merger.frames, merger.tokens


def merger_names(model: nn.Module, saved: Collection[str]) -> dict[str, str]:
    """Return for each saved tensor of a merger, by its name in the file, the name that it has in the model.

    The path to a block may differ: a base that was saved with its head on has its names behind a prefix, and
    transformers saves some families under the names of published checkpoints. From the number of the block on, names
    are the same. A name that fits no tensor, or one that another name has, is left out.
    """
    own = {key for key in model.state_dict() if MERGER in key}
    by_block: dict[str, list[str]] = {}
    for key in own:
        by_block.setdefault(_from_block(key), []).append(key)
    named = {key: key for key in saved if key in own}
    taken = set(named)
    for key in saved:
        found = by_block.get(_from_block(key), [])
        if key not in named and len(found) == 1 and found[0] not in taken:
            named[key] = found[0]
            taken.add(found[0])
    return named


def _from_block(key: str) -> str:
    """Return a name from the number of the block on: `model.layers.3.merger.grid` -> `3.merger.grid`."""
    path, _, rest = key.partition(MERGER)
    return path.rpartition(".")[2] + MERGER + rest


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name a file in an error that comes from what it says."""
    try:
        yield
    except SttmError as error:
        raise SttmError(f"{path} does not fit its model: {error}") from error
