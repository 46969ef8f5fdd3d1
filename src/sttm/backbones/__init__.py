"""The families of video transformers that can be merged, one file each."""

from __future__ import annotations

from typing import Any

from sttm.backbones.base import Backbone
from sttm.backbones.timesformer import TimeSformer
from sttm.backbones.towers.clip import CLIP
from sttm.backbones.towers.dinov2 import DINOv2, DINOv2WithRegisters
from sttm.backbones.towers.dinov3 import DINOv3
from sttm.backbones.towers.siglip import SigLIP
from sttm.backbones.towers.vit import ViT
from sttm.backbones.towers.xclip import XCLIP
from sttm.backbones.videomae import VideoMAE
from sttm.backbones.videoprism import VideoPrism
from sttm.backbones.vivit import ViViT
from sttm.backbones.vjepa2 import VJEPA2
from sttm.errors import SttmError

FAMILIES: list[Backbone] = [
    *(VideoMAE(), TimeSformer(), ViViT(), VJEPA2(), VideoPrism(), XCLIP()),
    *(ViT(), CLIP(), SigLIP(), DINOv2(), DINOv2WithRegisters(), DINOv3()),
]


def register(backbone: Backbone) -> None:
    """Add a family of one's own; it is asked before those that are there."""
    FAMILIES.insert(0, backbone)


def backbone_of(model: Any) -> Backbone:
    """Return the family of a model.

    Raises:
        SttmError: if no family knows the class of the model, or not with these settings.
    """
    name = type(model).__name__
    # A subclass counts as what it derives from: FSDP, for one, makes a subclass of every model that it shards.
    names = {cls.__name__ for cls in type(model).__mro__}
    for backbone in FAMILIES:
        if names & {*backbone.classes}:
            backbone.check(model)
            return backbone
    known = ", ".join(cls for backbone in FAMILIES for cls in backbone.classes)
    raise SttmError(
        f"no family of video transformers here knows a {name}; known are {known}; "
        "to add one, subclass sttm.backbones.Backbone and pass an instance to sttm.backbones.register"
    )


__all__ = ["FAMILIES", "Backbone", "backbone_of", "register"]
