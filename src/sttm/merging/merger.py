"""The Spatial-temporal Token Merger: finds the objects of a clip and fuses their tokens in space and in time.

Our reading of Z. Feng, J. Xu, L. Ma, S. Zhang, "Efficient Video Transformers via Spatial-temporal Token Merging for
Action Recognition", ACM TOMM 20(4), 2023, doi 10.1145/3633781. Only the abstract is open and no code was released:
the five steps are the abstract's, their form is ours.

Legend: B clips, T token frames, S tokens in a frame; F frames out (windows), L = T/F*S tokens in a window, M meta
tokens (slots) in a window; N = T*S tokens in, O = F*M objects; C width, D similarity width, 3 = (t, y, x), 2 = (y, x).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from sttm.errors import SttmError
from sttm.merging.selectors import make_selector, own_linear, take
from sttm.merging.tokens import MergeMap, Tokens

# How sharply an object looks for itself in a frame, at first: what is more like it by this cosine counts e times.
TAU = 0.1
# Paths count in quarters of half a picture: in that unit a way is as large as a feature, and as quick to learn from.
PATH_UNIT = 1 / 4
# A place that varies by this (variance, in half pictures squared) counts half: many things there look like the object.
DOUBT = 0.1


class TokenMerger(nn.Module):
    """Merges the tokens of a clip into `frames` x `tokens` slots that stand for its objects.

    Every token goes to the meta token of its window that it is most like, and a slot is the average of its tokens by
    size, so that the size-weighted mean of all tokens stays what it was. That is all off the shelf (`learned=False`):
    there is nothing to train. Learned (`learned=True`), each slot gets a motion feature as well: the path of its object
    through the clip, made of the tokens' positions alone, through a linear map. A place counts as much as it is sure:
    where much in a frame looks like the object, its path is noise, and slows down all else that is learned. The map
    starts at zero, so that a learned merger starts as the one off the shelf, bit for bit.

    Args:
        dim: width C of the tokens.
        frames: frames out, F; the frames in must be a multiple of it.
        tokens: slots in each frame out, M.
        frames_in: frames in, T; needed by the learned motion map (default: `frames`).
        learned: adds the trainable parts.
        selector: how meta tokens are found: "novelty", or "stride" where all windows have to keep the same places.
        similarity_dim: width D in which a learned merger follows objects (default: half of `dim`, at most 64).

    Example:
        >>> merger = TokenMerger(dim=32, frames=4, tokens=8, frames_in=8)
        >>> merged, who = merger(Tokens.of_grid(torch.randn(2, 8, 36, 32), height=6, width=6))
        >>> merged.x_BTSC.shape, int(merged.size_BTS.sum())
        (torch.Size([2, 4, 8, 32]), 576)

    Raises:
        SttmError: for sizes that no grid of tokens can have.
    """

    def __init__(
        self,
        dim: int,
        frames: int,
        tokens: int,
        *,
        frames_in: int | None = None,
        learned: bool = False,
        selector: str = "novelty",
        similarity_dim: int | None = None,
    ) -> None:
        super().__init__()
        frames_in = frames if frames_in is None else frames_in
        similarity_dim = max(1, min(64, dim // 2)) if similarity_dim is None else similarity_dim
        for name, value in dict(dim=dim, frames=frames, tokens=tokens, similarity_dim=similarity_dim).items():
            if value < 1:
                raise SttmError(f"TokenMerger got {name}={value}; give a whole number of one or more")
        if frames_in % frames:
            raise SttmError(f"{frames_in} frames do not divide into {frames} windows; choose frames from its divisors")
        self.dim, self.frames, self.tokens, self.frames_in = dim, frames, tokens, frames_in
        self.learned, self.similarity_dim = learned, similarity_dim
        self.selector_name = selector
        self.selector = make_selector(selector)
        if learned:
            self.similarity = nn.Linear(dim, similarity_dim, bias=False)
            self.log_tau = nn.Parameter(torch.tensor([TAU]).log())
            self.motion = nn.Linear(2 * frames_in + 1, dim)
            nn.init.zeros_(self.motion.weight)
            nn.init.zeros_(self.motion.bias)

    def extra_repr(self) -> str:
        mode = "learned" if self.learned else "off the shelf"
        return f"{self.frames_in} frames -> {self.frames} x {self.tokens} slots, {self.selector_name}, {mode}"

    def forward(self, tokens: Tokens, mapped: bool = True) -> tuple[Tokens, MergeMap | None]:
        """Merges: T x S tokens in, F x M slots out; prefix tokens pass untouched.

        Args:
            tokens: x [B T S C] with size [B T S] and position [B T S 3].
            mapped: whether to draw up the map; where nobody asks for it, that time can be saved.

        Returns:
            The slots, again on a frames-by-slots grid, and the map of who went where (None if not `mapped`).

        Raises:
            SttmError: if the grid is not the one this merger was made for.
        """
        self._check(tokens)
        # Similarities and sizes are kept in float32 whatever the model runs in: the steps below cast by hand.
        with torch.autocast(autocast_device(tokens.x_BTSC), enabled=False):
            return self._merge(tokens, mapped)

    def macs(self, frames: int, tokens: int) -> int:
        """Multiply-adds of one clip of `frames` x `tokens` tokens in (matrix products; as torch counts them)."""
        C, D, M, N, slots = self.dim, self.similarity_dim, self.tokens, frames * tokens, self.frames * self.tokens
        merged = self.selector.macs(self.frames, frames // self.frames * tokens, M, C) + N * M * (C + 3)
        if not self.learned:
            return merged
        followed = N * C * D + slots * N * (D + 4)
        return merged + followed + slots * C * (2 * self.frames_in + 1)

    def _merge(self, tokens: Tokens, mapped: bool) -> tuple[Tokens, MergeMap | None]:
        x_BFLC, size_BFL, position_BFL3 = self._windows(tokens)
        # 1. Meta tokens, in features centred on the window: what all of its tokens share tells nothing.
        feature_BFLC = standardised(x_BFLC)
        feature_BFLC = feature_BFLC - feature_BFLC.mean(2, keepdim=True)
        meta_BFM, cosine_BFML = self.selector(feature_BFLC, position_BFL3, self.tokens)
        # 2. Similarity of every token of a window with its objects.
        share_BFML = self._shares(cosine_BFML, meta_BFM)
        # 3. and 4. Fusion in each frame, then over the frames of the window; as both go by mass, in one average.
        mass_BFML = share_BFML * size_BFL[:, :, None]
        size_BFM = mass_BFML.sum(-1)
        weight_BFML = mass_BFML * size_BFM.reciprocal()[..., None]
        z_BFMC = weight_BFML.to(x_BFLC.dtype) @ x_BFLC
        place_BFM3 = weight_BFML @ position_BFL3
        # 5. Motion: the object's path through the whole clip, seen from where it is.
        path_BFMT2 = None
        if self.learned:
            path_BFMT2, sure_BFMT1 = self._path(feature_BFLC, meta_BFM, tokens.position_BTS3, place_BFM3)
            z_BFMC = self._moving(z_BFMC, path_BFMT2 * sure_BFMT1, size_BFM)
        merged = Tokens(z_BFMC, size_BFM, place_BFM3, tokens.prefix_BPC)
        return merged, self._map(tokens, merged, share_BFML.argmax(2), meta_BFM, path_BFMT2) if mapped else None

    def _shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        """How much of each token goes to each object, hard: all to the nearest; a meta token stays in its own slot."""
        number_BFM = torch.arange(self.tokens, device=meta_BFM.device).expand_as(meta_BFM)
        slot_BFL = cosine_BFML.max(2).indices.scatter(-1, meta_BFM, number_BFM)
        return torch.zeros_like(cosine_BFML).scatter(2, slot_BFL[:, :, None], 1.0)

    def _path(
        self, feature_BFLC: Tensor, meta_BFM: Tensor, position_BTS3: Tensor, place_BFM3: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Path of each object: the centroid of its likeness in every frame, less its own place; and how sure each is.

        Returns:
            path_BFMT2, and sure_BFMT1 between 0 and 1: the less, the wider the likeness is spread.
        """
        B, T, S, _ = position_BTS3.shape
        F, M = meta_BFM.shape[1:]
        unit_BFLD = normalize(own_linear(self.similarity, feature_BFLC).to(feature_BFLC.dtype), dim=-1)
        look_BOD = take(unit_BFLD, meta_BFM).flatten(1, 2) * self.log_tau.to(unit_BFLD.dtype).neg().exp()
        # [B F*M D] x [B D T*S] -> [B F*M T*S] -> [B T F*M S]: in every frame the object looks for itself.
        alike_BON = look_BOD @ unit_BFLD.flatten(1, 2).transpose(1, 2)
        likeness_BTOS = alike_BON.unflatten(2, (T, S)).softmax(-1).transpose(1, 2)
        # Linear aggregation of positions and of their squares: [B T F*M 4] -> [B F M T 4] -> 2 x [B F M T 2]
        where_BTS2 = position_BTS3[..., 1:].to(likeness_BTOS.dtype)
        moments_BTO4 = likeness_BTOS @ torch.cat((where_BTS2, where_BTS2.square()), dim=-1)
        there_BFMT2, square_BFMT2 = moments_BTO4.permute(0, 2, 1, 3).reshape(B, F, M, T, 4).split(2, dim=-1)
        spread_BFMT1 = (square_BFMT2 - there_BFMT2.square()).sum(-1, keepdim=True).clamp(min=0)
        return there_BFMT2 - place_BFM3[..., None, 1:], DOUBT / (DOUBT + spread_BFMT1)

    def _moving(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        """Slots with what merging took from them, the motion: a linear map of their paths and masses."""
        path_BFMK = torch.cat((path_BFMT2.flatten(-2) / PATH_UNIT, size_BFM.log()[..., None]), dim=-1)
        return z_BFMC + own_linear(self.motion, path_BFMK).to(z_BFMC.dtype)

    def _windows(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Features, sizes and positions by window: [B T S ...] -> [B F L ...]; bookkeeping in float32 or finer."""
        B, T, S, C = tokens.x_BTSC.shape
        F, L = self.frames, (T // self.frames) * S
        exact = torch.promote_types(tokens.x_BTSC.dtype, torch.float32)
        x_BFLC = tokens.x_BTSC.reshape(B, F, L, C)
        return x_BFLC, tokens.size_BTS.to(exact).reshape(B, F, L), tokens.position_BTS3.to(exact).reshape(B, F, L, 3)

    def _map(
        self, tokens: Tokens, merged: Tokens, slot_BFL: Tensor, meta_BFM: Tensor, path: Tensor | None = None
    ) -> MergeMap:
        """The record of this merge; slots and tokens numbered through the clip."""
        B, T, S, _ = tokens.x_BTSC.shape
        F, M = self.frames, self.tokens
        window_F1 = torch.arange(F, device=slot_BFL.device)[:, None]
        return MergeMap(
            assignment=(slot_BFL + window_F1 * M).reshape(B, T * S),
            size=merged.size_BTS.reshape(B, F * M),
            position=merged.position_BTS3.reshape(B, F * M, 3),
            grid=((T, S), (F, M)),
            meta=(meta_BFM + window_F1 * slot_BFL.shape[-1]).reshape(B, F * M),
            trajectory=None if path is None else path.detach().reshape(B, F * M, T, 2),
        )

    def _check(self, tokens: Tokens) -> None:
        _, T, S, C = tokens.x_BTSC.shape
        if C != self.dim or T != self.frames_in or T // self.frames * S < self.tokens:
            raise SttmError(
                f"this merger takes {self.frames_in} frames of width {self.dim} with at least {self.tokens} tokens in "
                f"each of its {self.frames} windows, and got {T} frames x {S} tokens of width {C}; "
                "make it for that grid, or give sttm.apply the clip_shape that you use"
            )


def standardised(x_C: Tensor) -> Tensor:
    """Each token at mean 0 and variance 1 over its channels, in float32 or finer: any input scale looks alike."""
    return layer_norm(x_C.to(torch.promote_types(x_C.dtype, torch.float32)), x_C.shape[-1:])


def autocast_device(x: Tensor) -> str:
    """Autocast knows no meta device."""
    return "cpu" if x.device.type == "meta" else x.device.type
