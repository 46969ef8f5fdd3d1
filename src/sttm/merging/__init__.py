"""The mathematics of merging: knows neither models nor files."""

from __future__ import annotations

from sttm.errors import unknown
from sttm.merging.baselines.learned import PatchMerger, TokenLearner
from sttm.merging.baselines.matching import DensityPeaks, DropMerge, PiToMe, ToMe
from sttm.merging.baselines.pruning import RLT, STA, EViT
from sttm.merging.baselines.simple import AveragePool, FrameDrop, RandomDrop
from sttm.merging.merger import TokenMerger
from sttm.merging.reducer import TokenReducer
from sttm.merging.spec import WHOLE_CLIP, MethodSpec

__all__ = ["METHODS", "WHOLE_CLIP", "MethodSpec", "TokenReducer", "method_named", "spec_of"]

#: Every method by name, behind one call: `METHODS[name](dim, frames, tokens, frames_in=..., ...)`.
METHODS: dict[str, type[TokenReducer]] = {
    reducer.name: reducer
    for reducer in (
        *(TokenMerger, RandomDrop, FrameDrop, AveragePool, ToMe, PiToMe, DropMerge),
        *(PatchMerger, TokenLearner, EViT, STA, RLT, DensityPeaks),
    )
}


def method_named(name: str) -> type[TokenReducer]:
    """Return the reducer of that name; SttmError lists the names there are."""
    if name not in METHODS:
        raise unknown("method", name, sorted(METHODS))
    return METHODS[name]


def spec_of(name: str) -> MethodSpec:
    """Return the spec of the method of that name."""
    return method_named(name).spec
