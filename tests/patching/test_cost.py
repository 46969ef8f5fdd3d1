"""What a forward of fixed models costs: multiply-adds, operations, memory and graph breaks, against `cost.json`.

A higher figure is a regression; a lower one has to be written down, so that it stays. To write all figures anew, from
the project's root:
    python -m tests.patching.test_cost
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sttm
from sttm.benchmark.memory import peak_bytes
from tests.helpers import lively, pixels

RECORDED = Path(__file__).with_name("cost.json")
#: Family, options of `sttm.apply` (None: plain), and whether graph breaks are counted, which takes seconds.
CASES: dict[str, tuple[str, dict[str, Any] | None, bool]] = {
    "videomae plain": ("videomae", None, False),
    "videomae sttm": ("videomae", {"compute": 0.6}, False),
    "videomae sttm learned": ("videomae", {"compute": 0.6, "learned": True}, True),
    "videomae tome": ("videomae", {"compute": 0.6, "method": "tome"}, False),
    "vivit sttm": ("vivit", {"compute": 0.6}, False),
    "timesformer sttm": ("timesformer-divided", {"compute": 0.6}, False),
    "vjepa2 sttm": ("vjepa2", {"compute": 0.6}, False),
}


class Operations(TorchDispatchMode):
    """Count the operations that run inside, views apart: those start no kernel."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def cost_of(name: str) -> dict[str, int]:
    """Return the figures of one case, for one clip."""
    family, options, broken = CASES[name]
    model = lively(family)
    if options is not None:
        sttm.apply(model, **options)
    clip = pixels(model, clips=1)
    model(clip)  # what is made at the first call is no cost of a forward
    with Operations() as operations:
        model(clip)
    cost = {"multiply_adds": sttm.macs(model), "operations": operations.count}
    cost["peak_bytes"] = peak_bytes(model, clip, lambda: model(clip))
    if broken:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.compile(model, backend="eager")(clip)
        cost["graph_breaks"] = sum(torch._dynamo.utils.counters["graph_break"].values())
    return cost


@pytest.mark.parametrize("name", CASES)
def test_a_forward_costs_what_is_recorded(name: str) -> None:
    recorded, cost = json.loads(RECORDED.read_text(encoding="utf-8"))[name], cost_of(name)
    assert cost.keys() == recorded.keys()
    higher = {key: f"{value}, recorded {recorded[key]}" for key, value in cost.items() if value > recorded[key]}
    assert not higher, f"{name} costs more"
    lower = {key: f"{value}, recorded {recorded[key]}" for key, value in cost.items() if value < recorded[key]}
    assert not lower, f"{name} costs less: write that down by `python -m tests.patching.test_cost`"


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({name: cost_of(name) for name in CASES}, indent=2) + "\n", encoding="utf-8")
