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
    Difference(
        "test_all_tensors_are_parameter_or_buffer",
        "it empties all tensors and calls `init_weights`, which knows nothing of a merger's tables",
    ),
    Difference(
        "test_init_weights_can_init_buffers", "the same: the tables are made with the merger, not by `init_weights`"
    ),
    Difference(
        "test_model_weights_reload_no_missing_tied_weights",
        "it reads a folder without weights, which is refused where transformers would start from random ones",
    ),
    Difference(
        "test_can_load_ignoring_mismatched_shapes",
        "the model is read with a new head, but transformers' log, where the test looks for it, is silent",
    ),
    Difference(
        "test_reverse_loading_mapping",
        "a merged folder has the names that the model's own tensors have, not those of published checkpoints",
        families=("videomae", "vivit"),
    ),
)


def named(family: str, compute: float) -> set[str]:
    """Return the names of the tests that have to differ: none at compute 1, where there is no merger."""
    return {one.test for one in DIFFERENCES if family in one.families and compute < 1}
