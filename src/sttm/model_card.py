"""The model card of a saved model: a README.md that says what was merged, in the form that the hub reads.

A card that was written here is written again with the next save. One that a person wrote or edited stays: the last line
of ours has a digest of all the others.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from sttm.backbones import backbone_of
from sttm.patching import api

CARD = "README.md"
_MARK = "<!-- Written by sttm.save, and again with each save until it is edited: {} -->"
_LOAD = """```python
import sttm

model = sttm.load("FOLDER")  # this folder, or its id on the hub; in eval mode, {what}
```
"""
_PREDICT = """
`sttm predict CLIP --model FOLDER` classifies video files, `sttm eval FOLDER --data VIDEOS` measures it.{auto}
"""
_AUTO = """ The auto classes
of transformers load it too, once sttm is imported; without it they refuse it."""
_MERGED_LIMITS = """
- It takes clips of {clip} (frames, channels, height, width), for which it was merged; `sttm.remove(model)` gives the
  model without mergers, for any other.
- Its answers differ a little from those of the model without mergers; how much depends on the videos, so measure it.
- Multiply-adds are counted, not time: `sttm bench --model FOLDER` measures the time on a machine.
"""
_LIMITS = """
- This card was written by a program. It knows neither the data that the model was trained on nor its accuracy.
"""


def write_card(model: Any, folder: Path, *, overwrite: bool = False) -> bool:
    """Write the card of a model that was saved to a folder; return whether it did, or a card of the user's stays."""
    path = folder / CARD
    if path.exists() and not overwrite and not _is_ours(path):
        return False
    text = make_card(model)
    path.write_text(f"{text}\n{_MARK.format(_digest(text))}\n", encoding="utf-8")
    return True


def make_card(model: Any) -> str:
    """Return the card of a model, merged or plain."""
    from huggingface_hub import ModelCardData

    model = api.unwrap(model)
    merged, backbone = api.is_merged(model), backbone_of(model)
    base, license_ = origin(str(getattr(model, "name_or_path", "") or ""))
    tags = [backbone.family.lower(), *(("token-merging", "sttm") if merged else ())]
    data = ModelCardData(
        library_name="sttm" if merged else "transformers", pipeline_tag=_task(model), base_model=base, license=license_,
        tags=tags,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{_body(model, base)}"


def origin(name: str) -> tuple[str | None, str | None]:
    """Return the hub id of what a model was made from, and the licence of that; None where it is not known.

    Args:
        name: what transformers loaded the model from: a hub id, a folder of the hub's cache, or another folder, whose
            card may say both.
    """
    said = front_matter(Path(name) / CARD) if name else {}
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]", name)
    base = said.get("base_model")
    if cached is not None:
        base = f"{cached[1]}/{cached[2]}"
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists():
        base = name
    elif isinstance(base, list) and len(base) == 1:
        base = base[0]
    license_ = said.get("license")
    return (base if isinstance(base, str) else None), (license_ if isinstance(license_, str) else None)


def _body(model: Any, base: str | None) -> str:
    """Return the text below the front matter."""
    name = type(model).__name__
    of = f" of [{base}](https://huggingface.co/{base})" if base else ""
    if not api.is_merged(model):
        parts = [f"# {name}\n\nA {name}{of}, saved by sttm. Nothing is merged in it.\n", "## Load\n"]
        parts += [_LOAD.format(what="without mergers") + _PREDICT.format(auto="")]
        return "\n".join([*parts, "## Limits", _LIMITS.strip("\n")]) + "\n"
    plan = api.plan_of(model)
    trained = "with parameters of their own" if plan.learned else "without parameters of their own"
    cost = f"one clip takes {plan.macs_before / 1e9:.3f} GMACs without them, {plan.macs_after / 1e9:.3f} with them"
    parts = [
        f"# {name}, merged\n\nA {name}{of} whose tokens are merged on the way through it, so that a clip costs "
        f"{plan.compute:.3f} of its multiply-adds.\n",
        "## What was merged\n",
        f"Method `{plan.method}`; mergers in {len(plan.mergers)} blocks, {trained}; {cost}.\n",
        f"```text\n{plan}\n```\n",
        "## Load\n",
        _LOAD.format(what="merged as above") + _PREDICT.format(auto=_AUTO),
        "## Limits",
        (_MERGED_LIMITS.rstrip("\n") + _LIMITS.rstrip("\n")).format(clip=plan.clip_shape).strip("\n"),
    ]
    return "\n".join(parts) + "\n"


def _task(model: Any) -> str:
    """Return the hub's name of what a model does."""
    backbone = backbone_of(model)
    if not backbone.classifies(model):
        return "image-feature-extraction" if backbone.pictures else "feature-extraction"
    return "image-classification" if backbone.pictures else "video-classification"


def front_matter(path: Path) -> dict[str, Any]:
    """Return the metadata of a card; nothing where there is no card, or none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return (metadata_load(path) if path.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _is_ours(path: Path) -> bool:
    """Return whether a card was written here, and is as it was written."""
    try:
        text, _, mark = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
    except (OSError, ValueError):
        return False
    return mark == _MARK.format(_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]
