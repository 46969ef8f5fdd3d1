"""Baselines that look at no token's features: random drop, frame drop and average pooling.

All baselines are written from their papers; where one differs from its paper, its docstring says how and why. A token's
weight in attention and pooling is its size: methods that merge add sizes up, so that they sum to the tokens that came
in; methods that drop give what they keep size one, which weighs all alike, as in their papers.

Legend: B clips, F windows (frames out), L tokens in a window, M slots in a window, K tokens kept, C width, P prefix
tokens; 3 = (t, y, x).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from sttm.merging.ops import Table, take
from sttm.merging.reduced import Reduced
from sttm.merging.reducer import TokenReducer
from sttm.merging.selectors import StrideSelector, ZOrder, regular_picks
from sttm.merging.spec import MethodSpec


class RandomDrop(TokenReducer):
    """Keeps tokens at random in training, and on a regular stride in evaluation, so that an answer does not vary.

    Every window keeps the same number. With selector="stride" they are kept on the stride in training too, which a
    backbone with divided attention over time needs: all windows have to keep the same positions.

    Source: the baseline of all token reduction; Patch Dropout (Liu et al., WACV 2023) trains with it.
    """

    name = "random"
    spec = MethodSpec(schedules=(), drops=True)
    selectors = ("stride",)

    def setup(self) -> None:
        self.stride = StrideSelector(self.tokens, self.length)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        return dropped(x_BFLC, position_BFL3, self.stride, at_random=self.training and self.selector_name is None)


def dropped(x_BFLC: Tensor, position_BFL3: Tensor, stride: StrideSelector, *, at_random: bool) -> Reduced:
    """Keep as many tokens of each window as the stride has, at random or on it; drop all others."""
    if at_random:
        meta_BFM = torch.rand(x_BFLC.shape[:3], device=x_BFLC.device).topk(stride.count).indices
    else:
        meta_BFM = stride.pick(x_BFLC, position_BFL3)
    return Reduced.to_kept(x_BFLC, position_BFL3, meta_BFM.sort(-1).values)


class FrameDrop(TokenReducer):
    """Keeps whole frames at a regular stride: uniform frame subsampling, of any number of the frames there are."""

    name = "frames"
    spec = MethodSpec(whole_frames=True, drops=True)
    kept_K: Tensor

    def setup(self) -> None:
        S, frames = self.tokens, regular_picks(self.frames_in, self.frames)
        kept = [frame * S + token for frame in frames for token in range(S)]
        self.register_buffer("kept_K", torch.tensor(kept), persistent=False)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        return Reduced.to_kept(x_BFLC, position_BFL3, self.kept_K.expand(x_BFLC.shape[0], 1, -1))


class AveragePool(TokenReducer):
    """Averages each run of neighbours in time, then in space: spatio-temporal average pooling to any number of slots.

    The tokens of a window are ordered along a Z-order curve over the frame, those of one position in all its frames
    together, and the order is cut into M runs as equal as can be. Where the numbers fit (a grid of a power of two, M an
    eighth of a window of two frames) the runs are the 2 x 2 x 2 cubes of ordinary pooling; elsewhere, where ordinary
    pooling has no answer or an overlapping one, they are still compact blocks. The mean by size does not change.
    """

    name = "pool"
    spec = MethodSpec()

    def setup(self) -> None:
        self.order = ZOrder()
        self.runs = Table(partial(_equal_runs, count=self.tokens), self.length)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        order_BFL = self._by_position(position_BFL3)
        slot_BFL = torch.zeros_like(order_BFL).scatter(-1, order_BFL, self.runs(x_BFLC).expand_as(order_BFL))
        return Reduced.to_averages(x_BFLC, size_BFL, position_BFL3, slot_BFL, self.tokens)

    def _by_position(self, position_BFL3: Tensor) -> Tensor:
        """Return the tokens along a Z-order curve over the frame, those of one position by time: [B F L]."""
        order_BFL = self.order(position_BFL3, timed=False)
        along_BFL3 = take(position_BFL3, order_BFL)
        new_BFL = (along_BFL3[:, :, 1:, 1:] != along_BFL3[:, :, :-1, 1:]).any(-1)
        number_BFL = pad(new_BFL.cumsum(-1), (1, 0))
        # Times are within [-1, 1].
        return order_BFL.gather(-1, (number_BFL.double() * 4 + along_BFL3[..., 0]).argsort(-1))


def _equal_runs(length: int, count: int) -> list[int]:
    """Return the number of the run of each of `length` tokens, in `count` runs as equal as can be."""
    return [token * count // length for token in range(length)]
