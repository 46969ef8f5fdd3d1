"""Models inside DDP, compiled ones, and what is no model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sttm
from sttm.patching import api
from tests.helpers import ONE_EACH, lively, logits, pixels


@pytest.mark.parametrize("family", ONE_EACH)
def test_data_parallel_and_compiled_models(family: str, one_process: None) -> None:
    model = lively(family)
    wrapped = nn.parallel.DistributedDataParallel(model)
    plan = sttm.apply(wrapped, compute=0.6)
    assert api.plan_of(model) is plan and sttm.macs(wrapped) == plan.macs_after
    with sttm.trace(wrapped) as maps:
        torch.testing.assert_close(logits(wrapped, pixels(model)), logits(model, pixels(model)))
    assert len(maps) == 2 * len(plan.mergers)
    sttm.remove(wrapped)
    with pytest.raises(sttm.SttmError, match="before wrapping"):
        sttm.apply(wrapped, compute=0.6, learned=True)
    compiled: Any = torch.compile(model)
    with pytest.raises(sttm.SttmError, match=r"compiled.*sttm\.apply first"):
        sttm.apply(compiled, compute=0.6)
    model.compile()
    with pytest.raises(sttm.SttmError, match=r"compiled.*sttm\.apply first"):
        sttm.apply(model, compute=0.6)


def test_what_is_no_model_says_so() -> None:
    wrong: Any
    for wrong, advice in (
        ("MCG-NJU/videomae-base", r"sttm\.load\('MCG-NJU/videomae-base'\)"),
        (None, "NoneType"),
        (3, "int"),
    ):
        with pytest.raises(sttm.SttmError, match=advice):
            sttm.apply(wrong)
