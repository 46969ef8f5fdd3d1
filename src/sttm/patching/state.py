"""The state of one forward of a merged model.

A merged model holds no state of its own. Each forward opens a `MergeState` on a stack that belongs to its thread and
closes it when it ends, also by an exception. Two threads, replicas, nested and interleaved models thus never meet. A
layer gets its `Slots` as an argument, so that gradient checkpointing captures them with the layer's other inputs; for
the one call of an attention module they lie in `local.slots`, since attention functions take no argument of ours. A
layer that merges between its attention and its MLP gets a `Step` with them, which lies on `local.steps` from the
attention to the end of the MLP. The first run writes the map into the step; a recomputation finds it there and follows
it.

Legend: B clips, N tokens with the prefix, C width, E width of what a merger reads.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sttm.backbones.base import Slots
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap


class Key:
    """What the hooks of one merged model know each other by; a copy of the model has a copy of it."""


@dataclass(eq=False)
class MergeState:
    """All that one forward carries from merger to merger.

    Attributes:
        key: of the model that runs.
        opener: the module whose call opened it: the model, or its base called by itself.
        slots: what the hidden states stand for now; None before the first merger.
        maps: the lists that collect the maps of this forward.
        kept: the maps of this forward, for what is behind the blocks and needs them.
        hidden_BNC: what the base returned, for a head that reads the tokens itself.
        entered: whether the base runs or ran.
        pixels: what the model was called with; None where it was called with something else.
        steps: how many steps were under way when it was opened.
    """

    key: Key
    opener: nn.Module
    slots: Slots | None = None
    maps: list[list[MergeMap]] = field(default_factory=list)
    kept: list[MergeMap] = field(default_factory=list)
    hidden_BNC: Any = None
    entered: bool = False
    pixels: Tensor | None = None
    steps: int = 0


@dataclass(eq=False)
class Step:
    """What one layer that merges inside carries, in one forward, from its attention to its output.

    Attributes:
        merger: the module that merges there; with the layer's own weights, also in a replica.
        reads: what it reads of the attention (see `MethodSpec.reads`).
        before: what the tokens stand for that come in; None for those of the plain grid.
        cue_BNE: what it read, until the tokens have merged.
        map: what went where.
        after: what the slots stand for.
    """

    merger: nn.Module
    reads: str
    before: Slots | None
    cue_BNE: Tensor | None = None
    map: MergeMap | None = None
    after: Slots | None = None


@dataclass(frozen=True, eq=False)
class StepSlots(Slots):
    """The slots of a layer that merges inside, and its step."""

    step: Step


class _Local(threading.local):
    """What belongs to one thread."""

    def __init__(self) -> None:
        #: the forwards that run, the innermost last
        self.states: list[MergeState] = []
        #: (key, list) of each `sttm.trace` that is open
        self.traces: list[tuple[Key, list[MergeMap]]] = []
        #: what the attention module that runs now is to weigh its keys by
        self.slots: Slots | None = None
        #: the steps of the layers that run now and are between their attention and the end of their MLP
        self.steps: list[Step] = []


local = _Local()


def current(key: Key) -> MergeState:
    """Return the state of the innermost forward of a merged model in this thread."""
    for state in reversed(local.states):
        if state.key is key:
            return state
    raise SttmError(
        "a block of a merged model ran outside of the model's forward; call the model itself, and checkpoint with "
        "model.gradient_checkpointing_enable() instead of around blocks"
    )
