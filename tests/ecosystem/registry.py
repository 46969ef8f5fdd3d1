"""The list: what others do to a merged model, and the models that it is done to.

A use is a function that takes a `Subject` and raises if a promise is broken; `@use` registers it. Uses and subjects
make the cells of one test (test_uses.py) and of the table in docs/ecosystem.md (`python -m tests.ecosystem`). A new
family is covered as soon as tests/helpers.py has a small model of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sttm
from tests.helpers import ALL, lively, logits, pixels, stir


@dataclass(frozen=True)
class Subject:
    """A small model and how it is merged."""

    family: str
    method: str = "sttm"
    learned: bool = True

    @property
    def name(self) -> str:
        method = f"-{self.method}" if self.method != "sttm" else ""
        return f"{self.family}{method}{'' if self.learned else '-as-is'}"

    @property
    def trains(self) -> bool:
        """Whether its mergers have parameters: baselines have not."""
        return self.learned and self.method == "sttm"

    def plain(self) -> Any:
        return lively(self.family)

    def apply(self, model: Any) -> None:
        """Merge a model, and move its mergers off their start."""
        sttm.apply(model, compute=0.6, method=self.method, learned=self.learned)
        stir(model)

    def merged(self) -> Any:
        model = self.plain()
        self.apply(model)
        return model


#: The learned merger in every family; as it is in some; methods that merge inside a block.
SUBJECTS = [
    *map(Subject, ALL),
    *(Subject(family, learned=False) for family in ("videomae", "vivit", "timesformer-divided", "vjepa2")),
    *(Subject(*pair) for pair in (("videomae", "evit"), ("vivit", "tome"), ("vjepa2", "pitome"), ("dinov3", "tome"))),
]
#: In `make test` what is quick runs on these, and on all others in `make test-extended`,
EVERY = ("videomae", "vivit", "timesformer-divided", "vjepa2", "siglip", "videomae-as-is")
#: what takes long on these, and on others in `make test-extended`,
QUICK = ("videomae", "timesformer-divided")
#: but not on these, which differ from another of their family in nothing that an exporter or a process sees.
ALIKE = {
    *("timesformer-joint", "timesformer-space", "vjepa2-features", "dinov2-registers"),
    *(
        "vivit-as-is",
        "timesformer-divided-as-is",
        "videomae-as-is",
        "vjepa2-as-is",
        "vjepa2-pitome",
        "dinov3-tome",
        "vivit-tome",
    ),
}


class Room:
    """What a use may need besides a subject: an empty folder, a group of one process, two processes of their own."""

    def __init__(self, folder: Path, request: Any) -> None:
        self.folder, self._request = folder, request

    def group(self) -> None:
        """Open a process group of this process alone, until the use ends."""
        self._request.getfixturevalue("one_process")

    def pool(self) -> ProcessPoolExecutor:
        """Return two spawned processes that have a process group of their own."""
        return self._request.getfixturevalue("two_processes")


@dataclass(frozen=True)
class Use:
    """One thing that people do to a merged model.

    Attributes:
        name: in the identifiers of tests.
        title: in the table.
        holds: what is promised, in the table.
        check: raises where it does not hold.
        long: whether it takes more than some two seconds.
    """

    name: str
    title: str
    holds: str
    check: Callable[[Subject, Room], None]
    long: bool

    @property
    def subjects(self) -> list[Subject]:
        """What it is tested on."""
        return [subject for subject in SUBJECTS if not (self.long and subject.name in ALIKE)]


USES: list[Use] = []


def use(title: str, holds: str, *, long: bool = False) -> Callable[[Callable[[Subject, Room], None]], Any]:
    """Register a function as a use."""

    def register(check: Callable[[Subject, Room], None]) -> Callable[[Subject, Room], None]:
        USES.append(Use(check.__name__.replace("_", "-"), title, holds, check, long))
        return check

    return register


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that two answers differ by rounding at most."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def assert_alike(one: Any, other: Any) -> None:
    """Assert that two models answer alike, to the bit."""
    assert torch.equal(logits(one, pixels(other)), logits(other, pixels(other)))


#: What does not hold, by use and subject, with its reason. Each is an expected failure: one that passes is a red test.
#: The pooling head of SigLIP is torch's MultiheadAttention.
UNCALLED = "as in the plain model, attention of the pooling head reads the weights of a layer that it does not call"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("trainer", "timesformer-space"): "as in the plain model, transformers' loss wants a label for each frame",
    **{(use, "siglip"): UNCALLED
       for use in ("fsdp2-linears", "cpu-offload", "disk-offload", "lora-before", "lora-after")},
}  # fmt: skip


def cells() -> Iterator[tuple[Use, Subject]]:
    """Yield every use of every subject."""
    for one in USES:
        for subject in one.subjects:
            yield one, subject
