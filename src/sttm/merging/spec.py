"""How a schedule uses a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: In `MethodSpec.windows`: all frames there are.
WHOLE_CLIP = 0


@dataclass(frozen=True)
class MethodSpec:
    """How a schedule uses a method.

    Attributes:
        windows: how many frames the first merger joins to a window, and how many any later one.
        aligned: slot m is the same place, or the same query, in every frame.
        everywhere: a merger inside every block, or before every block but the first, each taking about the same number
            of tokens.
        whole_frames: the number of frames is reduced, never the number of tokens in one.
        schedules: where its mergers sit, as shares of the depth, the preferred place first; () for one merger before
            the first block, as the choice does not depend on features; None for those of the schedule's own.
        reads: what it judges tokens by: "tokens", as they come; the "keys" of the block's attention, averaged over
            heads; the "attention" that each token receives; the "pixels" of each token in its first and last frame.
        inside: which of its mergers sit inside a block, between attention and MLP, instead of before it: "none", "all",
            or "later" (all but the first). A merger there gets what the method reads of the attention, and has no
            parameters.
        sized: slots stand for different numbers of tokens, which count in attention and pooling.
        drops: tokens may go nowhere, the first of a clip among them.
        training: whether the method has parameters: "never", "optional" (with learned=True) or "required".
        moves: slots get the motion feature where the method is learned, unless it is left out; the method names the
            meta token of every slot, and the features of all tokens.
    """

    windows: tuple[int, int] = (2, 1)
    aligned: bool = True
    everywhere: bool = False
    whole_frames: bool = False
    schedules: tuple[tuple[float, float], ...] | None = None
    reads: Literal["tokens", "keys", "attention", "pixels"] = "tokens"
    inside: Literal["none", "later", "all"] = "none"
    sized: bool = True
    drops: bool = False
    training: Literal["never", "optional", "required"] = "never"
    moves: bool = False
