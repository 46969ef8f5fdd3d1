"""The page that shows one clip merger by merger, token by token; its template is explorer.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from sttm.visual.pages.page import data_uri, template
from sttm.visual.pictures import PATH_COLOURS, Drawing
from sttm.visual.regions import PALETTE


def page(drawing: Drawing, header: Sequence[str]) -> str:
    """Return a self-contained page of html: frames, regions and script are inside, and nothing is fetched.

    Args:
        header: what was run and what the model says; the first line is the title.
    """
    title, *lines = header
    paths, what = drawing.paths
    return template("explorer.html").substitute(
        style=(template("style.css").template),
        title=escape(title),
        lines="".join(f"<p>{escape(line)}</p>" for line in lines),
        paths=f" Lines with a dot: {escape(what)}." if len(paths) else "",
        data=json.dumps(_data(drawing)).replace("<", "\\u003c"),
    )


def _data(drawing: Drawing) -> dict[str, Any]:
    """Return what the script needs: frames as addresses, and the slot and colour of each token in each layer."""
    frames, height, width = drawing.stages[0].slot_THW.shape
    tokens = frames * height * width
    before = {
        "caption": f"Before merging: {tokens:,} tokens",
        "slot": list(range(tokens)),
        "colour": [-1] * tokens,
    }
    after = [
        {
            "caption": drawing.caption(number),
            "slot": stage.slot_THW.reshape(-1).tolist(),
            "colour": stage.colours.reshape(-1).tolist(),
        }
        for number, stage in enumerate(drawing.stages)
    ]
    pictures = drawing.pictures[:: drawing.tubelet]
    return {
        "grid": [frames, height, width],
        "width": pictures[0].width,
        "height": pictures[0].height,
        "frames": [data_uri(picture) for picture in pictures],
        "layers": [before, *after],
        "palette": [",".join(map(str, colour)) for colour in PALETTE],
        "paths": drawing.paths[0].round(3).tolist(),
        "pathPalette": [",".join(map(str, colour)) for colour in PATH_COLOURS],
    }
