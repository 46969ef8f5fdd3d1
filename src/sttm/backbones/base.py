"""What sttm has to know of a family of video transformers, and the state that a merged forward carries along.

Legend: B clips, P prefix tokens, T token frames, H x W token grid, S = H*W tokens in a frame, F frames and M slots in a
frame after a merger, N = P + T*S tokens, C width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap, Tokens
from sttm.patching.edits import Patch

# One clip of pixels: frames, channels, height, width.
ClipShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """The token grid of one clip: T frames of H x W tokens, after P prefix tokens.

    `sequences` is how many times the blocks run for one clip: 1, or T where each frame goes through by itself.
    """

    frames: int
    height: int
    width: int
    prefix: int
    sequences: int = 1

    @property
    def tokens(self) -> int:
        return self.height * self.width


class Ledger:
    """Sizes and positions after each merger of the forward that runs now; one ledger a model.

    Every merger writes its own page and reads the one before, so that a block that runs twice (gradient
    checkpointing) finds what it found the first time.
    """

    def __init__(self, mergers: int) -> None:
        self.pages: list[Page | None] = [None] * mergers
        self.maps: list[MergeMap] | None = None

    def write(self, index: int, page: Page, merge_map: MergeMap | None) -> None:
        self.pages[index] = page
        if self.maps is not None and merge_map is not None:
            self.maps.append(merge_map)

    def read(self, index: int) -> Page:
        page = self.pages[index]
        assert page is not None, "a block ran before the merger in front of it"
        return page

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        # The pages belong to the last forward of the original (and may hang on its graph): a copy starts empty.
        return Ledger(len(self.pages))

    def __getstate__(self) -> dict[str, Any]:
        return {"pages": [None] * len(self.pages), "maps": None}


@dataclass
class Page:
    """After one merger: the size of each slot, where it is, and how many prefix tokens stand before the grid."""

    size_BFM: Tensor
    position_BFM3: Tensor
    prefix: int

    def log_size(self, time_minor: bool) -> Tensor:
        """Log sizes in the order of the hidden states, prefix tokens counting one each: [B, P + F*M]."""
        size_BFM = self.size_BFM.transpose(1, 2) if time_minor else self.size_BFM
        log_size_BN = size_BFM.flatten(1).log()
        return nn.functional.pad(log_size_BN, (self.prefix, 0))


class Backbone(ABC):
    """One family: where its blocks are, how its tokens lie, how it pools and attends, what it costs.

    To add a family, subclass this and pass an instance to `sttm.backbones.register`.
    """

    family: str
    example: str
    #: classes of the family that can be merged, by name
    classes: tuple[str, ...]
    #: slot m must be the same place in every frame (attention over time at each place)
    aligned: bool = False
    #: tokens lie place by place, all frames of a place together, instead of frame by frame
    time_minor: bool = False

    @abstractmethod
    def blocks(self, model: Any) -> Any:
        """The transformer blocks, in order: an nn.ModuleList."""

    @abstractmethod
    def clip_shape(self, model: Any) -> ClipShape:
        """Pixels of one clip that the model is configured for."""

    @abstractmethod
    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        """Token grid of such a clip."""

    @abstractmethod
    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        """Multiply-adds of one clip outside the blocks, the head seeing frames x tokens at the end."""

    @abstractmethod
    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        """Multiply-adds of one block, of one sequence, at frames x tokens."""

    def width(self, model: Any) -> int:
        return int(model.config.hidden_size)

    def check(self, model: Any) -> None:
        """Raises SttmError for a setting of the family that cannot be merged."""

    def split(self, hidden_BNC: Tensor, frames: int, prefix: int) -> tuple[Tensor, Tensor | None]:
        """Hidden states to grid and prefix: [B, P + T*S, C] -> [B T S C], [B P C]."""
        B, N, C = hidden_BNC.shape
        x_BNC = hidden_BNC[:, prefix:]
        if self.time_minor:
            x_BTSC = x_BNC.reshape(B, (N - prefix) // frames, frames, C).transpose(1, 2)
        else:
            x_BTSC = x_BNC.reshape(B, frames, (N - prefix) // frames, C)
        return x_BTSC, hidden_BNC[:, :prefix] if prefix else None

    def join(self, tokens: Tokens) -> Tensor:
        """The inverse of `split`: [B F M C], [B P C] -> [B, P + F*M, C]."""
        x_BTSC = tokens.x_BTSC.transpose(1, 2) if self.time_minor else tokens.x_BTSC
        x_BNC = x_BTSC.flatten(1, 2)
        return x_BNC if tokens.prefix_BPC is None else torch.cat((tokens.prefix_BPC, x_BNC), dim=1)

    def fit_blocks(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger, grid: Grid) -> None:
        """Whatever the blocks after a merger need to run on its slots at all (learned or not)."""

    @abstractmethod
    def weigh_by_size(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger) -> None:
        """Attention and pooling in which a slot counts as many times as the tokens it stands for."""


@dataclass(frozen=True)
class Seat:
    """A merger's place: before which block, its number, and the grid that it leaves."""

    block: int
    index: int
    frames: int
    tokens: int


def seat_of(block: int, seats: list[Seat]) -> Seat | None:
    """The last merger in front of a block."""
    return next((seat for seat in reversed(seats) if seat.block <= block), None)


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a setting that may be one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def fixed_clip(family: str, wanted: ClipShape, given: ClipShape) -> None:
    """Raises SttmError unless the clip is the one a family with a fixed position table takes."""
    if wanted != given:
        raise SttmError(
            f"this {family} model takes clips of {wanted} (frames, channels, height, width) and got "
            f"clip_shape={given}; leave clip_shape out, or load the model with a config for that shape"
        )


def transformer_macs(tokens: int, width: int, inner: int, keys: int | None = None) -> int:
    """Multiply-adds of a pre-norm block: q, k, v, output projection, scores and values, and the two-layer MLP."""
    keys = tokens if keys is None else keys
    return 4 * tokens * width**2 + 2 * tokens * keys * width + 2 * tokens * width * inner
