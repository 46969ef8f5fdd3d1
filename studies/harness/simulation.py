"""A simulation of `sttm batch` on a fleet of machines: decoders and models that take groups as they come.

What it knows of the product: groups are read in their order; a decoded group waits until a model is idle, at most
`waiting` of them, as Ray Data stops the decoders then; what a lost node had in hand is decoded again; of a lost driver
the groups of parts that were not complete are made again. Times are constant: no clip is longer
than another. Storage is one queue, which hands out the bytes of one group after another.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Literal

Lost = Literal["node", "driver"]


@dataclass(frozen=True)
class Fleet:
    """What there is of each, and what one clip takes of it, in seconds."""

    decoders: int
    """Cores that decode, on all nodes together."""
    models: int
    decode_s: float
    model_s: float
    storage_s: float = 0.0
    """Of the storage that all nodes read from: the bytes of a clip over bytes a second."""
    nodes: int = 1
    cores: int | None = None
    """Where decoders and models share cores and are more than these."""
    group: int = 8
    """Clips that go through together."""
    waiting: int = 64
    """Groups that may be decoded or in decoding, and not answered."""
    part: int = 1024


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took."""

    seconds: float
    busy: dict[str, float]
    """The share of that time in which decoders, models and storage worked, over all of each."""
    redone: int
    """Clips that were decoded or answered and had to be again."""


class _Run:
    """The state of one simulated run."""

    def __init__(self, fleet: Fleet, clips: int) -> None:
        self.fleet, self.now, self.storage_free = fleet, 0.0, 0.0
        self.groups = -(-clips // fleet.group)
        self.each = max(1, fleet.part // fleet.group)
        self.order = count()
        self.events: list[tuple[float, int, str, int, int]] = []  # when, which one, what, group, node
        self.running: dict[int, tuple[str, int, int]] = {}
        self.todo = deque(range(self.groups))
        self.decoded: deque[tuple[int, int]] = deque()
        self.done: dict[int, list[int]] = {}  # groups of the parts that are not complete
        self.finished, self.redone = 0, 0
        self.worked = dict.fromkeys(("decoders", "models", "storage"), 0.0)
        self.idle = {kind: self._places(kind, range(fleet.nodes)) for kind in ("decoders", "models")}

    def _places(self, kind: str, nodes: range) -> list[int]:
        """Return the node of each decoder or model."""
        number = self.fleet.decoders if kind == "decoders" else self.fleet.models
        return [place % self.fleet.nodes for place in range(number) if place % self.fleet.nodes in nodes]

    def begin(self, kind: str, group: int, seconds: float, waits: float = 0.0) -> None:
        node, token = self.idle[kind].pop(), next(self.order)
        self.running[token] = (kind, group, node)
        self.worked[kind] += seconds
        heapq.heappush(self.events, (self.now + waits + seconds, token, kind, group, node))

    def start_what_can(self) -> None:
        """Give work to what is idle; models come first, as they are what the rest waits for."""
        fleet, size = self.fleet, self.fleet.group
        while self._core() and self.decoded and self.idle["models"]:
            self.begin("models", self.decoded.popleft()[0], size * fleet.model_s)
        in_hand = len(self.running) + len(self.decoded)
        while self._core() and self.todo and self.idle["decoders"] and in_hand < fleet.waiting + fleet.models:
            self.storage_free = max(self.now, self.storage_free) + size * fleet.storage_s
            self.worked["storage"] += size * fleet.storage_s
            self.begin("decoders", self.todo.popleft(), size * fleet.decode_s, self.storage_free - self.now)
            in_hand += 1

    def _core(self) -> bool:
        return self.fleet.cores is None or len(self.running) < self.fleet.cores

    def end(self, kind: str, group: int, node: int) -> None:
        """Put down what a decoder or a model has made."""
        self.idle[kind].append(node)
        if kind == "decoders":
            self.decoded.append((group, node))
            return
        part = group // self.each
        self.done.setdefault(part, []).append(group)
        self.finished += 1
        if len(self.done[part]) == min(self.each, self.groups - part * self.each):
            del self.done[part]  # it is written

    def lose(self, what: Lost, back_s: float) -> None:
        """Lose the first node, or the driver and with it all that is not written, for some seconds."""
        nodes = range(1) if what == "node" else range(self.fleet.nodes)
        again = [group for kind, group, node in self.running.values() if node in nodes]
        self.running = {token: task for token, task in self.running.items() if task[2] not in nodes}
        again += [group for group, node in self.decoded if node in nodes]
        self.decoded = deque(item for item in self.decoded if item[1] not in nodes)
        if what == "driver":
            unwritten = [group for groups in self.done.values() for group in groups]
            self.finished -= len(unwritten)
            again, self.done = again + unwritten, {}
        self.redone += len(again) * self.fleet.group
        self.todo.extendleft(sorted(again, reverse=True))
        self.idle = {kind: [node for node in places if node not in nodes] for kind, places in self.idle.items()}
        heapq.heappush(self.events, (self.now + back_s, next(self.order), "back", 0, len(nodes)))

    def next(self) -> None:
        """Go on to the next event."""
        self.now, token, kind, group, node = heapq.heappop(self.events)
        if kind == "back":
            for name, places in self.idle.items():
                places += self._places(name, range(node))
        elif self.running.pop(token, None) is not None:
            self.end(kind, group, node)


def simulate(fleet: Fleet, clips: int, *, lost: Lost | None = None, at_s: float = 0.0, back_s: float = 0.0) -> Outcome:
    """Run `clips` through a fleet.

    Args:
        lost: what is lost after `at_s` seconds and is there again `back_s` seconds later; left out, nothing is.
    """
    run = _Run(fleet, clips)
    pending = lost
    while run.finished < run.groups:
        run.start_what_can()
        if pending is not None and (not run.events or run.events[0][0] >= at_s):
            run.now = at_s
            run.lose(pending, back_s)
            pending = None
        run.next()
    of = {"decoders": fleet.decoders, "models": fleet.models, "storage": 1}
    busy = {kind: run.worked[kind] / (of[kind] * run.now) for kind in of}
    return Outcome(run.now, busy, run.redone)
