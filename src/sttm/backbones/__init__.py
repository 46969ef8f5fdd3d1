"""The families of video transformers that can be merged, one file each."""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Backbone
from sttm.backbones.timesformer import TimeSformer
from sttm.backbones.towers.clip import CLIP
from sttm.backbones.towers.dinov2 import DINOv2, DINOv2WithRegisters
from sttm.backbones.towers.dinov3 import DINOv3
from sttm.backbones.towers.siglip import SigLIP
from sttm.backbones.towers.timm import TimmViT
from sttm.backbones.towers.vit import ViT
from sttm.backbones.towers.xclip import XCLIP
from sttm.backbones.videomae import VideoMAE
from sttm.backbones.videoprism import VideoPrism
from sttm.backbones.vivit import ViViT
from sttm.backbones.vjepa2 import VJEPA2
from sttm.errors import NAME, SttmError, did_you_mean, quoted

FAMILIES: list[Backbone] = [
    *(VideoMAE(), TimeSformer(), ViViT(), VJEPA2(), VideoPrism(), XCLIP()),
    *(ViT(), CLIP(), SigLIP(), DINOv2(), DINOv2WithRegisters(), DINOv3(), TimmViT()),
]


def register(backbone: Backbone) -> None:
    """Add a family of one's own; it is asked before those that are there."""
    FAMILIES.insert(0, backbone)


def known_classes() -> dict[str, Backbone]:
    """Return the classes that can be merged, by name, and the family of each."""
    return {name: backbone for backbone in reversed(FAMILIES) for name in backbone.classes}


def backbone_of(model: Any) -> Backbone:
    """Return the family of a model.

    Raises:
        SttmError: if no family knows the class of the model, or not with these settings.
    """
    # A subclass counts as what it derives from: FSDP, for one, makes a subclass of every model that it shards.
    names = {cls.__name__ for cls in type(model).__mro__}
    for backbone in FAMILIES:
        if names & {*backbone.classes}:
            backbone.check(model)
            return backbone
    name, known = type(model).__name__, known_classes()
    held = [path for path, part in model.named_modules() if path and type(part).__name__ in known]
    if held:
        part = type(model.get_submodule(held[0])).__name__
        raise SttmError(
            f"no family knows a {quoted(name, NAME)}, but its {held[0]} is of the known class {part}; give that part: "
            f"model.{held[0]}"
        )
    near = did_you_mean(name, known, "the nearest there are is a ViT's")
    raise SttmError(
        f"no family knows a {quoted(name, NAME)}; {near} (`sttm models` lists all families); to add one, subclass "
        "sttm.backbones.Backbone and pass an instance to sttm.backbones.register, as docs/families.md shows"
    )


__all__ = ["FAMILIES", "Backbone", "backbone_of", "known_classes", "register"]
