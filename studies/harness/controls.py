"""Controls: plain models that are made cheaper without merging, to the same multiply-adds.

Each changes one thing of the model or of its clips and is trained like all others: larger patches, narrower, shallower,
fewer frames, smaller pictures. Grids are coarse, so a control is the one whose multiply-adds are nearest to the budget;
tables show them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

import sttm
from harness.training import Shape, new_model
from sttm.errors import SttmError

#: Positions of t, y and x share the width in quarters and three eighths, in pairs of channels.
WIDTHS = 16
#: How far a picture may be from its size, in pixels, so that larger patches divide it.
EDGE_SLACK = 2


def _patches(shape: Shape) -> Iterator[Shape]:
    for patch in range(shape.patch + 1, shape.edge // 2 + 1):
        for edge in range(shape.edge - EDGE_SLACK, shape.edge + EDGE_SLACK + 1):
            if edge % patch == 0:
                yield replace(shape, patch=patch, edge=edge)


def _narrow(shape: Shape) -> Iterator[Shape]:
    for width in range(WIDTHS, shape.width, WIDTHS):
        yield replace(shape, width=width, heads=max(heads for heads in (1, 2, shape.heads) if width % heads == 0))


def _shallow(shape: Shape) -> Iterator[Shape]:
    yield from (replace(shape, depth=depth) for depth in range(1, shape.depth))


def _frames(shape: Shape) -> Iterator[Shape]:
    yield from (replace(shape, frames=frames) for frames in range(2, shape.frames, 2))


def _pictures(shape: Shape) -> Iterator[Shape]:
    yield from (replace(shape, edge=edge) for edge in range(shape.patch, shape.edge, shape.patch))


#: The controls by name.
CONTROLS = {
    "larger patches": _patches,
    "narrower": _narrow,
    "shallower": _shallow,
    "fewer frames": _frames,
    "smaller pictures": _pictures,
}


def control_shape(name: str, shape: Shape, compute: float) -> Shape:
    """Return the shape of a control whose multiply-adds are nearest to `compute` of those of `shape`.

    Raises:
        SttmError: for an unknown control.
    """
    if name not in CONTROLS:
        raise SttmError(f"unknown control {name!r}; choose one of {', '.join(CONTROLS)}")
    budget = compute * _macs(shape)
    return min(CONTROLS[name](shape), key=lambda candidate: abs(_macs(candidate) - budget))


def _macs(shape: Shape) -> int:
    with torch.device("meta"):
        return sttm.macs(new_model(shape, 2))
