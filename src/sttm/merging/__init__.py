"""The mathematics of merging: knows neither models nor files."""

from __future__ import annotations

from dataclasses import dataclass

from sttm.errors import SttmError
from sttm.merging.baselines.matching import STA, DensityPeaks, EViT, ToMe
from sttm.merging.merger import TokenMerger
from sttm.merging.baselines.learned import PatchMerger, TokenLearner
from sttm.merging.baselines.simple import AveragePool, FrameDrop, RandomDrop, Rival

#: Every way to leave fewer tokens, behind one call: `METHODS[name](dim, frames, tokens, frames_in=..., ...)`.
METHODS: dict[str, type[TokenMerger] | type[Rival]] = {
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
class Habits:
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


#: What differs from the habits of "sttm"; for the reasons see each method.
HABITS: dict[str, Habits] = {
    "random": Habits(early=True),
    "pool": Habits(gentle=0.7),
    "frames": Habits(whole_frames=True),
    "tome": Habits((WHOLE_CLIP, WHOLE_CLIP), aligned=False, everywhere=True, gentle=0.7),
    "patchmerger": Habits(sized=False),
    "tokenlearner": Habits((1, 1), sized=False),
    "evit": Habits((WHOLE_CLIP, WHOLE_CLIP), aligned=False),
    "sta": Habits((1, 2), aligned=False, gentle=0.7),
    "dpcknn": Habits(aligned=False),
}


def method_named(name: str) -> type[TokenMerger] | type[Rival]:
    """The reducer of that name; SttmError lists the names there are."""
    if name not in METHODS:
        raise SttmError(f"unknown method {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]


def habits_of(name: str) -> Habits:
    """How that method is used."""
    return HABITS.get(name, Habits())
