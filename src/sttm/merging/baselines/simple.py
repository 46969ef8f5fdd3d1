"""Baselines of the merger behind the same call: what they share, and the plain ones, which look at no token.

`matching.py` has those that look at the tokens first, `queries.py` those that are learned. All are written from their
papers; where one differs from its paper, its docstring says how and why. In every one a token's weight in attention
and pooling is its size: methods that merge hand sizes on, so that they sum to the tokens that came in; methods that
drop leave what they keep at size one, which weighs all alike, as in their papers.

Legend: B clips, T token frames, S tokens in a frame; F windows (frames out), L tokens in a window, M slots in a window,
C width, P prefix tokens; 3 = (t, y, x).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sttm.errors import SttmError
from sttm.merging.merger import autocast_device
from sttm.merging.selectors import StrideSelector, regular_picks, stride_order, take
from sttm.merging.tokens import MergeMap, Tokens


@dataclass
class Reduced:
    """What a baseline leaves of each window, and who went where: given, as soft weights, or as the tokens kept.

    Attributes:
        x_BFMC, size_BFM, position_BFM3: the slots.
        slot_BFL: for each token the slot it went to.
        weight_BFML: or the share each token has in each slot; the largest counts.
        meta_BFM: or the token that each of the first slots is; all others went to slot `rest` (-1: they are gone).
    """

    x_BFMC: Tensor
    size_BFM: Tensor
    position_BFM3: Tensor
    slot_BFL: Tensor | None = None
    weight_BFML: Tensor | None = None
    meta_BFM: Tensor | None = None
    rest: int = -1

    def slots(self, length: int) -> Tensor:
        """The slot of each of the `length` tokens of a window: [B F L]."""
        if self.slot_BFL is not None:
            return self.slot_BFL
        if self.weight_BFML is not None:
            return self.weight_BFML.argmax(-2)
        assert self.meta_BFM is not None, "a baseline says nothing of who went where"
        B, F, M = self.meta_BFM.shape
        number_BFM = torch.arange(M, device=self.meta_BFM.device).expand(B, F, M)
        nowhere_BFL = torch.full((B, F, length), self.rest, device=self.meta_BFM.device)
        return nowhere_BFL.scatter(-1, self.meta_BFM, number_BFM)


class Baseline(nn.Module, ABC):
    """A way to leave `frames` x `tokens` slots of a clip, made and called as `TokenMerger` is.

    Args:
        dim: width C of the tokens.
        frames: frames out, F; each stands for a window of the frames in.
        tokens: slots in each frame out, M.
        frames_in: frames in, T (default: `frames`).
        learned: whether it will be trained; a method with parameters has to be, for the others it changes nothing.
        selector: None (for "random" also "stride").

    Raises:
        SttmError: for sizes that no grid of tokens can have, or a method that has to be trained and is not to be.
    """

    name: ClassVar[str]
    needs_training: ClassVar[bool] = False
    selectors: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        dim: int,
        frames: int,
        tokens: int,
        *,
        frames_in: int | None = None,
        learned: bool = False,
        selector: str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.frames, self.tokens, self.learned, self.selector_name = dim, frames, tokens, learned, selector
        self.frames_in = frames if frames_in is None else frames_in
        for size, value in dict(dim=dim, frames=frames, tokens=tokens).items():
            if value < 1:
                raise SttmError(f"{self.name} got {size}={value}; give a whole number of one or more")
        if self.frames_in % self.windows:
            raise SttmError(
                f"{self.frames_in} frames do not divide into {frames} windows; choose frames from its divisors"
            )
        if selector is not None and selector not in self.selectors:
            raise SttmError(f"{self.name} looks for no meta tokens by selector={selector!r}; leave selector out")
        if self.needs_training and not learned:
            raise SttmError(f"{self.name} has to be trained; give learned=True, or choose a method without parameters")

    @property
    def windows(self) -> int:
        """Into how many parts the clip is divided, each reduced by itself."""
        return self.frames

    @abstractmethod
    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        """The slots of every window."""

    def macs(self, frames: int, tokens: int) -> int:
        """Multiply-adds of one clip of `frames` x `tokens` tokens in (matrix products; as torch counts them)."""
        return 0

    def extra_repr(self) -> str:
        return f"{self.frames_in} frames -> {self.frames} x {self.tokens} slots"

    def forward(self, tokens: Tokens, mapped: bool = True) -> tuple[Tokens, MergeMap | None]:
        """Reduces T x S tokens to F x M slots; prefix tokens pass untouched.

        Returns:
            The slots, again on a frames-by-slots grid, and the map of who went where (None if not `mapped`).

        Raises:
            SttmError: if the grid is not the one this was made for.
        """
        B, T, S, C = tokens.x_BTSC.shape
        F, M, W = self.frames, self.tokens, self.windows
        self._check(T, S, C)
        exact = torch.promote_types(tokens.x_BTSC.dtype, torch.float32)
        size_BWL, position_BWL3 = tokens.size_BTS.to(exact), tokens.position_BTS3.to(exact)
        with torch.autocast(autocast_device(tokens.x_BTSC), enabled=False):
            found = self.reduce(
                tokens.x_BTSC.reshape(B, W, -1, C),
                size_BWL.reshape(B, W, -1),
                position_BWL3.reshape(B, W, -1, 3),
                tokens.prefix_BPC,
            )
        size_BFM, position_BFM3 = found.size_BFM.reshape(B, F, M), found.position_BFM3.reshape(B, F, M, 3)
        merged = Tokens(found.x_BFMC.reshape(B, F, M, C), size_BFM.detach(), position_BFM3.detach(), tokens.prefix_BPC)
        return merged, self._map(found, merged, T, S) if mapped else None

    def _map(self, found: Reduced, merged: Tokens, T: int, S: int) -> MergeMap:
        B, F, M, _ = merged.x_BTSC.shape
        W, L = self.windows, T * S // self.windows
        window_W1 = torch.arange(W, device=merged.x_BTSC.device)[:, None]
        slot_BWL = found.slots(L)
        meta = None
        if found.meta_BFM is not None and found.meta_BFM.shape[-1] * W == F * M:
            meta = (found.meta_BFM + window_W1 * L).reshape(B, F * M)
        return MergeMap(
            assignment=torch.where(slot_BWL < 0, -1, slot_BWL + window_W1 * (F * M // W)).reshape(B, T * S),
            size=merged.size_BTS.reshape(B, F * M),
            position=merged.position_BTS3.reshape(B, F * M, 3),
            grid=((T, S), (F, M)),
            meta=meta,
        )

    def _check(self, T: int, S: int, C: int) -> None:
        if C != self.dim or T != self.frames_in or T * S // self.windows < self.frames * self.tokens // self.windows:
            raise SttmError(
                f"this {self.name} takes {self.frames_in} frames of width {self.dim} to {self.frames} x {self.tokens} "
                f"slots, and got {T} frames x {S} tokens of width {C}; "
                "make it for that grid, or give sttm.apply the clip_shape that you use"
            )


def kept(x_BFLC: Tensor, position_BFL3: Tensor, meta_BFM: Tensor) -> Reduced:
    """Those tokens as they are, and nothing of the others."""
    size_BFM = torch.ones(meta_BFM.shape, dtype=position_BFL3.dtype, device=x_BFLC.device)
    return Reduced(take(x_BFLC, meta_BFM), size_BFM, take(position_BFL3, meta_BFM), meta_BFM=meta_BFM)


def averaged(x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, slot_BFL: Tensor, count: int) -> Reduced:
    """The mean of the tokens of each slot by size; every slot has one at the least."""
    B, F, L, _ = x_BFLC.shape
    row_N = (slot_BFL + torch.arange(B * F, device=slot_BFL.device).view(B, F, 1) * count).flatten()
    size_N1 = size_BFL.reshape(B * F * L, 1)
    mass_R1 = size_N1.new_zeros(B * F * count, 1).index_add(0, row_N, size_N1)

    def mean(value_BFLK: Tensor) -> Tensor:
        value_NK = value_BFLK.reshape(B * F * L, -1).to(size_N1.dtype)
        sum_RK = value_NK.new_zeros(B * F * count, value_NK.shape[-1]).index_add(0, row_N, size_N1 * value_NK)
        return (sum_RK / mass_R1).to(value_BFLK.dtype).view(B, F, count, -1)

    return Reduced(mean(x_BFLC), mass_R1.view(B, F, count), mean(position_BFL3), slot_BFL=slot_BFL)


class RandomDrop(Baseline):
    """Keeps tokens at random while training, and on a regular stride in testing, so that an answer does not vary.

    Every window keeps the same number. With selector="stride" they are kept on the stride in training too: so on a
    backbone that attends over time at each place, where all windows have to keep the same places.

    Source: the baseline of all token reduction; Patch Dropout (Liu et al., WACV 2023) trains with it.
    """

    name = "random"
    selectors = ("stride",)

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        if self.training and self.selector_name is None:
            meta_BFM = torch.rand(size_BFL.shape, device=x_BFLC.device).topk(self.tokens).indices
        else:
            meta_BFM = StrideSelector().pick(x_BFLC, position_BFL3, self.tokens)
        return kept(x_BFLC, position_BFL3, meta_BFM.sort(-1).values)


class FrameDrop(Baseline):
    """Keeps whole frames at a regular stride: uniform frame subsampling, of any number of the frames there are."""

    name = "frames"

    @property
    def windows(self) -> int:
        return 1

    def _check(self, T: int, S: int, C: int) -> None:
        super()._check(T, S, C)
        if self.tokens != S:
            raise SttmError(f"frames keeps whole frames, of {S} tokens, and was asked for {self.tokens}; ask for {S}")

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        S = self.tokens
        frame_F = regular_picks(self.frames_in, self.frames, x_BFLC.device)
        meta_M = (frame_F[:, None] * S + torch.arange(S, device=x_BFLC.device)).flatten()
        return kept(x_BFLC, position_BFL3, meta_M.expand(x_BFLC.shape[0], 1, -1))


class AveragePool(Baseline):
    """Averages each run of neighbours in time, then in space: spatio-temporal average pooling to any number of slots.

    The tokens of a window are put in order along a Z-order curve over the frame, those of one place in all its frames
    together, and the order is cut into M runs as equal as can be. Where the numbers fit (a grid of a power of two, M an
    eighth of a window of two frames) the runs are the 2 x 2 x 2 cubes of ordinary pooling; elsewhere, where ordinary
    pooling has no answer or an overlapping one, they are still compact blocks. The mean by size is as it was.
    """

    name = "pool"

    def reduce(self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        order_BFL = _by_place(position_BFL3)
        L = order_BFL.shape[-1]
        run_BFL = (torch.arange(L, device=order_BFL.device) * self.tokens // L).expand_as(order_BFL)
        slot_BFL = torch.zeros_like(order_BFL).scatter(-1, order_BFL, run_BFL)
        return averaged(x_BFLC, size_BFL, position_BFL3, slot_BFL, self.tokens)


def _by_place(position_BFL3: Tensor) -> Tensor:
    """Tokens along a Z-order curve over the frame, those of one place by time: [B F L]."""
    anytime_BFL3 = position_BFL3 * position_BFL3.new_tensor([0, 1, 1])
    order_BFL = stride_order(anytime_BFL3)
    along_BFL3 = position_BFL3.gather(2, order_BFL[..., None].expand(-1, -1, -1, 3))
    elsewhere_BFL = (along_BFL3[:, :, 1:, 1:] != along_BFL3[:, :, :-1, 1:]).any(-1)
    place_BFL = nn.functional.pad(elsewhere_BFL.cumsum(-1), (1, 0))
    # Times are within [-1, 1].
    return order_BFL.gather(-1, (place_BFL.double() * 4 + along_BFL3[..., 0]).argsort(-1))
