"""What the merger and every baseline share: sizes, checks, windows and the map.

Legend: B clips, P prefix tokens, T token frames, S tokens in a frame; W windows, L = T*S/W tokens in a window;
F frames out, M slots in a frame out, O = F*M/W slots of a window; K tokens kept, C width; 3 = (t, y, x), 2 = (y, x).
F and W are equal, except where a method chooses among the frames of the whole clip (W = 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sttm.errors import SttmError, shown
from sttm.merging.motion import Motion
from sttm.merging.ops import without_autocast
from sttm.merging.reduced import Reduced
from sttm.merging.spec import MethodSpec
from sttm.merging.tokens import GridPositions, MergeMap, Tokens


class TokenReducer(nn.Module, ABC):
    """Reduces the tokens of a clip to `frames` x `tokens` slots; the base class of the merger and of every baseline.

    A method subclasses it, sets `name` and `spec`, and implements `reduce`; also `macs` where it multiplies matrices,
    and `setup` where it has parameters or tables. The `reduce` of a method that reads something else than the tokens
    takes two arguments more: cue_BWLD (None where there is none), and grid (as in `Tokens`).

    Args:
        dim: width C of the tokens.
        frames: frames out, F; each stands for a window of the frames in.
        tokens: slots in each frame out, M.
        frames_in: frames in, T (default: `frames`).
        tokens_in: tokens in each frame in, S. Where it is given, all tables are made once, with the module, and
            the forward can be traced and exported.
        grid_in: height and width of a frame in, for tokens that nothing has merged before: their positions, and what
            follows from these alone, are then made once.
        learned: adds the trainable parts; a method that has none is the same with it.
        motion: adds the motion feature to the slots, which any method can have (default: the merger has it if learned).
        selector: how meta tokens are chosen, for a method that has a choice.
        cue_dim: width of the keys that a merger inside a block reads; None for one before a block.
        depth: the share of the blocks that come before it, for a method that changes with the depth.

    Raises:
        SttmError: for sizes that no grid of tokens can have, a selector that the method does not have, or a method
            that has to be trained without learned=True.
    """

    name: ClassVar[str]
    spec: ClassVar[MethodSpec] = MethodSpec()
    selectors: ClassVar[Collection[str]] = ()
    default_selector: ClassVar[str | None] = None
    motion_type: ClassVar[type[Motion]] = Motion
    grid: Tensor

    def __init__(
        self,
        dim: int,
        frames: int,
        tokens: int,
        *,
        frames_in: int | None = None,
        tokens_in: int | None = None,
        grid_in: tuple[int, int] | None = None,
        learned: bool = False,
        selector: str | None = None,
        motion: bool | None = None,
        cue_dim: int | None = None,
        depth: float = 0.5,
    ) -> None:
        super().__init__()
        self.cue_dim, self.depth = cue_dim, depth
        self.dim, self.frames, self.tokens = dim, frames, tokens
        self.frames_in = frames if frames_in is None else frames_in
        self.tokens_in = tokens if self.spec.whole_frames and tokens_in is None else tokens_in
        self.learned, self.selector_name = learned, selector or self.default_selector
        self._check_sizes(dim=dim, frames=frames, tokens=tokens, frames_in=frames_in, tokens_in=tokens_in)
        self._check_method()
        #: Parts of the clip that are reduced each by itself, and tokens in one (None where `tokens_in` is unknown).
        self.windows = 1 if self.spec.whole_frames else frames
        self.length = None if self.tokens_in is None else self.frames_in * self.tokens_in // self.windows
        #: Marks a state dict as that of a reduced model, and says on which grid.
        self.register_buffer("grid", torch.tensor([self.frames_in, self.tokens_in or -1, frames, tokens]))
        self.grid_in = grid_in
        self.positions = None if grid_in is None else GridPositions(self.frames_in, *grid_in)
        self.setup()
        wanted = self.spec.moves and learned if motion is None else motion
        self.motion = self.motion_type(dim, self.frames_in) if wanted else None

    def setup(self) -> None:
        """Make the parameters and tables of the method; all sizes are set by then."""

    @abstractmethod
    def reduce(self, x_BWLC: Tensor, size_BWL: Tensor, position_BWL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        """Reduce every window to its slots; sizes and positions are float32 or finer, and autocast is off."""

    def macs(self, frames: int, tokens: int) -> int:
        """Return the multiply-adds of `reduce` for one clip of `frames` x `tokens` tokens (matrix products)."""
        return 0

    def total_macs(self, frames: int, tokens: int) -> int:
        """Return the multiply-adds of one clip, as torch counts them: those of `reduce` and of the motion feature."""
        own = self.macs(frames, tokens)
        if self.motion is None:
            return own
        return own + self.motion.macs(frames * tokens, self.frames * self.tokens, among_tokens=self.spec.moves)

    def extra_repr(self) -> str:
        size = f"{self.frames_in} frames -> {self.frames} x {self.tokens} slots"
        return ", ".join([size, *filter(None, [self.selector_name]), "learned" if self.learned else "off the shelf"])

    def forward(self, tokens: Tokens, mapped: bool = True, moved: bool = True) -> tuple[Tokens, MergeMap | None]:
        """Reduce T x S tokens to F x M slots; prefix tokens pass unchanged.

        Args:
            tokens: x [B T S C] with size [B T S] and position [B T S 3].
            mapped: whether to return the map; leaving it out saves time.
            moved: whether to add the motion feature; who leaves it out adds it by `move`.

        Returns:
            The slots, again on a frames-by-slots grid, and the map of which token went where (None if not `mapped`).

        Raises:
            SttmError: if the grid is not the one that this module was made for.
        """
        self._check_grid(tokens)
        B, W, L = tokens.x_BTSC.shape[0], self.windows, self.length or -1
        exact = torch.promote_types(tokens.x_BTSC.dtype, torch.float32)
        # [B T S ...] -> [B W L ...]
        x_BWLC = tokens.x_BTSC.reshape(B, W, L, self.dim)
        size_BWL, position_BWL3 = tokens.size_BTS.reshape(B, W, L), tokens.position_BTS3.reshape(B, W, L, 3)
        more: dict[str, Any] = {}
        if self.spec.reads != "tokens":
            cue_BTSD = tokens.cue_BTSD
            cue_BWLD = None if cue_BTSD is None else cue_BTSD.reshape(B, W, L, cue_BTSD.shape[-1])
            more = {"cue_BWLD": cue_BWLD, "grid": tokens.grid}
        # Similarities and sizes stay in float32 whatever the model runs in; the steps cast by themselves.
        with without_autocast(x_BWLC):
            reduced = self.reduce(x_BWLC, size_BWL.to(exact), position_BWL3.to(exact), tokens.prefix_BPC, **more)
            if self.motion is not None and moved:
                reduced = self.motion(x_BWLC, position_BWL3.to(exact), reduced)
        # [B W O ...] -> [B F M ...]
        x_BFMC = reduced.x_BWOC.reshape(B, self.frames, self.tokens, self.dim)
        size_BFM = reduced.size_BWO.reshape(B, self.frames, self.tokens)
        position_BFM3 = reduced.position_BWO3.reshape(B, self.frames, self.tokens, 3)
        merged = Tokens(x_BFMC, size_BFM, position_BFM3, tokens.prefix_BPC)
        return merged, self._map(reduced, merged, tokens.x_BTSC.shape[2]) if mapped else None

    def move(self, tokens: Tokens, merged: Tokens) -> Tensor:
        """Return slots that were averaged elsewhere with their motion feature added: [B F M C]."""
        if self.motion is None:
            return merged.x_BTSC
        B, W = tokens.x_BTSC.shape[0], self.windows
        exact = torch.promote_types(tokens.x_BTSC.dtype, torch.float32)
        x_BWLC, x_BWOC = (x_BTSC.reshape(B, W, -1, self.dim) for x_BTSC in (tokens.x_BTSC, merged.x_BTSC))
        size_BWO = merged.size_BTS.to(exact).reshape(B, W, -1)
        place_BWL3, place_BWO3 = (at.position_BTS3.to(exact).reshape(B, W, -1, 3) for at in (tokens, merged))
        with without_autocast(x_BWLC):
            reduced = self.motion(x_BWLC, place_BWL3, Reduced(x_BWOC, size_BWO, place_BWO3))
        return reduced.x_BWOC.reshape(merged.x_BTSC.shape)

    def _map(self, reduced: Reduced, merged: Tokens, tokens_in: int) -> MergeMap:
        """Return the map, with slots and tokens numbered through the whole clip."""
        grid = (self.frames_in, self.tokens_in or tokens_in), (self.frames, self.tokens)
        length, count = (frames * tokens // self.windows for frames, tokens in grid)
        window_W1 = torch.arange(self.windows, device=merged.x_BTSC.device)[:, None]
        slot_BWL, meta_BWK, path_BWOT2 = reduced.slots(length), reduced.meta_BWK, reduced.path_BWOT2
        weight_BWL = reduced.mass_BWL
        if weight_BWL is not None:
            own_BWL = slot_BWL.clamp(min=0)  # a dropped token has no mass, whatever slot it reads
            total_BWO = torch.zeros_like(reduced.size_BWO).scatter_add(-1, own_BWL, weight_BWL)
            weight_BWL = weight_BWL / total_BWO.gather(-1, own_BWL)
        if reduced.rest >= 0:
            meta_BWK = None  # the slot of all other tokens has no meta token
        return MergeMap(
            assignment=torch.where(slot_BWL < 0, -1, slot_BWL + window_W1 * count).flatten(1),
            size=merged.size_BTS.flatten(1),
            position=merged.position_BTS3.flatten(1, 2),
            grid=grid,
            meta=None if meta_BWK is None else (meta_BWK + window_W1 * length).flatten(1),
            trajectory=None if path_BWOT2 is None else path_BWOT2.detach().flatten(1, 2),
            weight=None if weight_BWL is None else weight_BWL.flatten(1),
        )

    def _check_sizes(self, **sizes: int | None) -> None:
        for size, value in sizes.items():
            if value is not None and value < 1:
                raise SttmError(f"{self.name} got {size}={value}; give a whole number of one or more")
        T, S, F, M = self.frames_in, self.tokens_in, self.frames, self.tokens
        if self.spec.whole_frames and S != M:
            raise SttmError(f"{self.name} keeps whole frames of {S} tokens and got tokens={M}; give tokens={S}")
        if T % F and not self.spec.whole_frames:
            raise SttmError(f"{T} frames do not divide into {F} windows; choose frames from the divisors of {T}")
        if S is not None and T * S < F * M:
            raise SttmError(f"{T} x {S} tokens cannot become {F} x {M}; give fewer frames or tokens out")

    def _check_method(self) -> None:
        if self.selector_name is not None and self.selector_name not in self.selectors:
            allowed = f"choose {' or '.join(self.selectors)}, or leave selector out"
            advice = allowed if self.selectors else "leave selector out"
            raise SttmError(f"{self.name} has no selector {shown(self.selector_name)}; {advice}")
        if self.spec.training == "required" and not self.learned:
            raise SttmError(f"{self.name} has to be trained; give learned=True, or choose a method without parameters")

    def _check_grid(self, tokens: Tokens) -> None:
        _, T, S, C = tokens.x_BTSC.shape
        expected = (self.dim, self.frames_in, self.tokens_in or S)
        if (C, T, S) != expected or T * S < self.frames * self.tokens:
            per_frame = self.tokens_in or f"{-(-self.frames * self.tokens // self.frames_in)} or more"
            raise SttmError(
                f"this {self.name} module takes {self.frames_in} frames of {per_frame} tokens of width {self.dim} "
                f"and got {T} frames of {S} tokens of width {C}; "
                "make it for that grid, or give sttm.apply the clip_shape that you use"
            )
        if self.grid_in is not None and tokens.grid != self.grid_in:
            raise SttmError(
                f"this {self.name} module takes tokens of a {self.grid_in[0]} x {self.grid_in[1]} grid that nothing "
                "has merged; make them by Tokens.of_grid, or leave grid_in out"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load, unless the state dict comes from another grid; sizes that one side does not know (-1) agree with any.

        `args` are those of `nn.Module`; the last is the list of errors, which `load_state_dict` raises together.
        """
        key, own = f"{prefix}grid", [self.frames_in, self.tokens_in or -1, self.frames, self.tokens]
        given = state_dict.get(key)
        if isinstance(given, Tensor) and given.shape == (4,) and not given.is_meta:
            theirs = given.tolist()
            if any(a != b for a, b in zip(theirs, own, strict=True) if a > 0 and b > 0):
                sizes = [f"{T} x {S if S > 0 else 'any'} -> {F} x {M}" for T, S, F, M in (theirs, own)]
                args[-1].append(
                    f"size mismatch for {key}: the state dict is of a module for {sizes[0]} tokens and this one is for "
                    f"{sizes[1]}; merge the model by the plan that the state dict was saved with"
                )
            state_dict = {**state_dict, key: self.grid}
        super()._load_from_state_dict(state_dict, prefix, *args)
