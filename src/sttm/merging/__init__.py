"""The mathematics of merging: knows neither models nor files."""

from __future__ import annotations

from dataclasses import dataclass

from sttm.errors import SttmError
from sttm.merging.baselines.learned import PatchMerger, TokenLearner
from sttm.merging.baselines.matching import STA, DensityPeaks, EViT, ToMe
from sttm.merging.baselines.simple import AveragePool, Baseline, FrameDrop, RandomDrop
from sttm.merging.merger import TokenMerger

#: Every way to leave fewer tokens, behind one call: `METHODS[name](dim, frames, tokens, frames_in=..., ...)`.
METHODS: dict[str, type[TokenMerger] | type[Baseline]] = {
    "sttm": TokenMerger,
    "random": RandomDrop,
    "frames": FrameDrop,
    "pool": AveragePool,
    "tome": ToMe,
    "patchmerger": PatchMerger,
    "tokenlearner": TokenLearner,
    "evit": EViT,
    "sta": STA,
    "dpcknn": DensityPeaks,
}

WHOLE_CLIP = 0


@dataclass(frozen=True)
class MethodSpec:
    """How a method is used, for the schedule.

    Attributes:
        windows: how many frames the first merger joins to a window, and how many any later one.
        aligned: slot m is the same place, or the same query, in every frame.
        everywhere: a merger before every block but the first, each taking about the same number of tokens.
        whole_frames: frames become fewer, never the tokens in one.
        early: merges once, before the first block, as it asks no feature.
        sized: slots stand for different numbers of tokens, which count in attention and pooling.
        gentle: a merger that leaves less than this share of the tokens makes the schedule merge earlier instead.
    """

    windows: tuple[int, int] = (2, 1)
    aligned: bool = True
    everywhere: bool = False
    whole_frames: bool = False
    early: bool = False
    sized: bool = True
    gentle: float = 0.4


#: What differs from the spec of "sttm"; for the reasons see each method.
SPECS: dict[str, MethodSpec] = {
    "random": MethodSpec(early=True),
    "pool": MethodSpec(gentle=0.7),
    "frames": MethodSpec(whole_frames=True),
    "tome": MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False, everywhere=True, gentle=0.7),
    "patchmerger": MethodSpec(sized=False),
    "tokenlearner": MethodSpec((1, 1), sized=False),
    "evit": MethodSpec((WHOLE_CLIP, WHOLE_CLIP), aligned=False),
    "sta": MethodSpec((1, 2), aligned=False, gentle=0.7),
    "dpcknn": MethodSpec(aligned=False),
}


def method_named(name: str) -> type[TokenMerger] | type[Baseline]:
    """The reducer of that name; SttmError lists the names there are."""
    if name not in METHODS:
        raise SttmError(f"unknown method {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]


def spec_of(name: str) -> MethodSpec:
    """How that method is used."""
    return SPECS.get(name, MethodSpec())
