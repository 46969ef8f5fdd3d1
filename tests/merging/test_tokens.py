"""Tokens on a grid, and maps: composed, unmerged, refused."""

from __future__ import annotations

import pytest
import torch

import sttm
from sttm.merging.merger import TokenMerger
from sttm.merging.tokens import MergeMap, Tokens, compose, grid_positions
from tests.merging.helpers import B, C, H, S, T, W, tokens


def test_maps_compose_as_the_mergers_do() -> None:
    first = TokenMerger(C, 2, 6, frames_in=T).double()
    second = TokenMerger(C, 1, 3, frames_in=2, selector="stride").double()
    merged, one = first(Tokens.of_grid(tokens().x_BTSC, H, W))
    merged_again, two = second(merged)
    whole = compose([one, two])
    assert whole.grid == ((T, S), (1, 3))
    for b in range(B):
        for token in range(T * S):
            assert whole.assignment[b, token] == two.assignment[b, one.assignment[b, token]]
    # Sizes after both count the tokens of the first grid.
    counts = torch.stack([torch.bincount(row, minlength=3) for row in whole.assignment]).double()
    torch.testing.assert_close(whole.size.double(), counts)
    unmerged = whole.unmerge(merged_again.x_BTSC.flatten(1, 2))
    assert unmerged.shape == (B, T * S, C)
    torch.testing.assert_close(unmerged[0, 7], merged_again.x_BTSC.flatten(1, 2)[0, whole.assignment[0, 7]])


def test_dropped_tokens_stay_dropped() -> None:
    one = MergeMap(torch.tensor([[0, -1, 1]]), torch.ones(1, 2), torch.zeros(1, 2, 3), ((1, 3), (1, 2)))
    two = MergeMap(torch.tensor([[-1, 0]]), torch.ones(1, 1), torch.zeros(1, 1, 3), ((1, 2), (1, 1)))
    whole = one.then(two)
    assert whole.assignment.tolist() == [[-1, -1, 0]]
    other = MergeMap(torch.tensor([[0, -1]]), torch.ones(1, 1), torch.zeros(1, 1, 3), ((1, 2), (1, 1)))
    assert one.then(other).assignment.tolist() == [[0, -1, -1]]
    assert whole.unmerge(torch.full((1, 1, 2), 5.0)).tolist() == [[[0, 0], [0, 0], [5, 5]]]


def test_positions_run_from_minus_one_to_one_in_raster_order() -> None:
    position_TS3 = grid_positions(3, 2, 3)
    assert position_TS3[0, 0].tolist() == [-1, -1, -1] and position_TS3[-1, -1].tolist() == [1, 1, 1]
    assert position_TS3[1, :3].tolist() == [[0, -1, -1], [0, -1, 0], [0, -1, 1]]
    assert grid_positions(1, 1, 1).tolist() == [[[-1, -1, -1]]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(sttm.SttmError, match="not a 3 x 3 grid"):
        Tokens.of_grid(torch.zeros(1, 2, 8, C), 3, 3)
    one = MergeMap(torch.zeros(1, 6).long(), torch.ones(1, 2), torch.zeros(1, 2, 3), ((2, 3), (1, 2)))
    with pytest.raises(sttm.SttmError, match="1 x 2 tokens cannot be followed by one from 2 x 3"):
        one.then(one)
    with pytest.raises(sttm.SttmError, match=r"sttm\.trace"):
        compose([])
