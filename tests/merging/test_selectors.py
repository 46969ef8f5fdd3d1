"""The choice of meta tokens: the order along the curve, and the cosines that every selector returns."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity

from sttm.merging.selectors import SELECTORS, ZOrder, bit_reversed, regular_picks
from sttm.merging.tokens import grid_positions
from tests.merging.helpers import B, C, H, S, W

F, M = 2, 6


def test_a_stride_takes_one_token_of_every_block() -> None:
    order = ZOrder()(grid_positions(1, 8, 8)[None, None, 0])[0, 0]
    blocks = {(int(i) // 8 // 2, int(i) % 8 // 2) for i in order[2::4]}
    assert len(blocks) == 16 and sorted(order.tolist()) == list(range(64))


@pytest.mark.parametrize("selector", SELECTORS)
def test_selectors_return_all_cosines_with_the_meta_tokens(selector: str) -> None:
    x_BFLC = torch.randn(B, F, H * W, C, generator=torch.Generator().manual_seed(0)).double() * 7
    x_BFLC[0, 0, 3] = 0.0  # a token of nothing is like none
    position_BFL3 = grid_positions(1, H, W).double().expand(B, F, H * W, 3)
    meta_BFM, cosine_BFML = SELECTORS[selector](M, S)(x_BFLC, position_BFL3)
    for b, f, m in itertools.product(range(B), range(F), range(M)):
        expected = cosine_similarity(x_BFLC[b, f, meta_BFM[b, f, m]], x_BFLC[b, f], dim=-1)
        torch.testing.assert_close(cosine_BFML[b, f, m], expected)


def test_the_smallest_turns_are_spread_over_the_ranks() -> None:
    turns = bit_reversed(16)
    first = sorted(range(16), key=lambda rank: turns[rank])
    assert first[:4] == [0, 8, 4, 12] and sorted(first[:8]) == list(range(0, 16, 2))
    assert len(set(bit_reversed(1000))) == 1000 and bit_reversed(1000)[:16] == turns


def test_regular_picks_are_different_and_even() -> None:
    for length, count in ((12, 4), (13, 5), (7, 7), (1, 1)):
        picks = regular_picks(length, count)
        steps = {later - earlier for earlier, later in itertools.pairwise(picks)}
        assert len(set(picks)) == count and 0 <= picks[0] and picks[-1] < length
        assert steps <= {length // count, -(-length // count)}
