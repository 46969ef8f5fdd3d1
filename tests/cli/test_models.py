"""`sttm models`."""

import json


def test_models_lists_bundled_ones_and_families(sttm):
    rows = json.loads(sttm("models", "--json").out)
    assert {row["kind"] for row in rows} == {"bundled", "hub id"}
    assert "MCG-NJU/videomae-base" in sttm("models").out
