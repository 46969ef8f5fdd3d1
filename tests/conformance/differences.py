"""The tests of transformers that come out otherwise for a merged model than for a plain one, each with its reason."""

from __future__ import annotations

from typing import NamedTuple

from tests.conformance.cases import FAMILIES

ALL = tuple(FAMILIES)


class Difference(NamedTuple):
    """One test that passes for the plain model and not for one with mergers, of these families."""

    test: str
    reason: str
    families: tuple[str, ...] = ALL


DIFFERENCES = (
    Difference(
        "test_attention_outputs",
        "attention maps are of slots, as many as the plan says, not of all tokens",
        families=("videomae", "vivit", "vjepa2"),
    ),
    Difference(
        "test_hidden_states_output",
        "hidden states are of slots, as many as the plan says",
        families=("videomae", "vivit", "vjepa2"),
    ),
)


def named(family: str, compute: float) -> set[str]:
    """Return the names of the tests that have to differ: none at compute 1, where there is no merger."""
    return {one.test for one in DIFFERENCES if family in one.families and compute < 1}
