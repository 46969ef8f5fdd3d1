"""`sttm models`."""

import json

from sttm.backbones import backbone_of
from tests.helpers import ALL, lively, pixels


def test_models_lists_bundled_ones_and_families(sttm):
    rows = json.loads(sttm("models", "--json").out)
    assert {row["kind"] for row in rows} == {"bundled", "hub id"}
    out = sttm("models").out
    assert "MCG-NJU/videomae-base" in out and "docs/families.md" in out


def test_every_family_says_what_it_supports(sttm):
    from sttm.backbones import FAMILIES as REGISTERED

    families = {row["family"]: row for row in json.loads(sttm("models", "--json").out) if row["kind"] == "hub id"}
    assert families.keys() == {backbone.family for backbone in REGISTERED}
    for name in ALL:
        model = lively(name)
        backbone = backbone_of(model)
        row, grid = families[backbone.family], backbone.grid(model, backbone.clip_shape(model))
        assert row["class_token"] == (grid.prefix > 0) and row["pictures"] == (pixels(model).ndim == 4), name
        assert type(model).__name__ in row["classes"]
    assert [name for name, row in families.items() if row["rotary"]] == ["vjepa2", "dinov3"]
    assert [name for name, row in families.items() if row["divided"]] == ["timesformer"]
    assert [name for name, row in families.items() if row["restores"]] == ["videoprism", "xclip", "timm-vit"]
