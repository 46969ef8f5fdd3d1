"""What `--features` adds to a row: the vector that the classifier reads, or every slot with where it was.

Legend: B clips, V views of one video, P prefix tokens, T x S tokens in, F x M slots, N = P + F*M, C width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.corpus.manifest import Features
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap, compose, grid_positions
from sttm.patching import api

Columns = dict[str, list[Any]]


def names_of(features: Features) -> tuple[str, ...]:
    """Return the columns that such features take."""
    return {"none": (), "pooled": ("pooled",), "slots": ("slots", "slot_sizes", "slot_paths")}[features]


def check(model: nn.Module, features: Features, views: tuple[int, int]) -> None:
    """Raise SttmError for features that the model does not have."""
    if features == "pooled":
        head_of(model)
    if features == "slots":
        if views != (1, 1):
            raise SttmError("--features slots are those of one view; leave --views out, or ask for pooled features")
        backbone = backbone_of(model)
        if backbone.grid(model, backbone.clip_shape(model)).sequences != 1:
            raise SttmError("this model reads each frame by itself, so its slots have no paths; use --features pooled")


def head_of(model: Any) -> nn.Module:
    """Return the last linear layer of a model, which makes the logits; raise SttmError where there is none."""
    classes = len(model.config.id2label)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not heads:
        raise SttmError("this model has no linear layer that makes its logits; leave --features pooled out")
    return heads[-1]


class Collector:
    """Collects the features of the clips that go through a model while `collecting` is open."""

    def __init__(self, model: nn.Module, features: Features) -> None:
        self.model, self.features = model, features
        self._taken: list[Tensor] = []
        self._maps: list[list[MergeMap]] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect the features of every forward inside."""
        self._taken.clear()
        self._maps.clear()
        with ExitStack() as stack:
            if self.features == "pooled":
                handle = head_of(self.model).register_forward_pre_hook(self._take_input)
                stack.callback(handle.remove)
            if self.features == "slots":
                last = backbone_of(self.model).blocks(self.model)[-1]
                stack.callback(last.register_forward_hook(self._take_output).remove)
                if api.is_merged(self.model):
                    maps = stack.enter_context(api.trace(self.model))
                    stack.callback(self.model.register_forward_hook(lambda *_: self._take_maps(maps)).remove)
            yield

    def columns(self, videos: int) -> Columns:
        """Return the columns of `names_of`, with a value for each of the videos that went through, in order."""
        if not videos or self.features == "none":
            return {name: [] for name in names_of(self.features)}
        if self.features == "pooled":
            # [B*V*n C] -> [B C]: a model may answer for each frame
            pooled_BC = torch.cat(self._taken).unflatten(0, (videos, -1)).mean(1)
            return {"pooled": [*pooled_BC.numpy()]}
        found: Columns = {name: [] for name in names_of("slots")}
        for number, hidden_BNC in enumerate(self._taken):
            for name, values in self._slots(hidden_BNC, self._maps[number] if self._maps else []).items():
                found[name].extend(values)
        return found

    def _slots(self, hidden_BNC: Tensor, maps: list[MergeMap]) -> Columns:
        backbone = backbone_of(self.model)
        grid = backbone.grid(self.model, backbone.clip_shape(self.model))
        B = len(hidden_BNC)
        if maps:
            merged = compose(maps)
            (frames, tokens), assignment_BN, size_BS = merged.grid[1], merged.assignment.cpu(), merged.size.cpu()
        else:
            frames, tokens = grid.frames, grid.tokens
            assignment_BN = torch.arange(frames * tokens).expand(B, -1)
            size_BS = torch.ones(B, frames * tokens)
        x_BFMC, _ = backbone.split(hidden_BNC, frames, tokens, grid.prefix)
        position_TS3 = grid_positions(grid.frames, grid.height, grid.width)
        paths = paths_of(assignment_BN, position_TS3[..., 1:], frames * tokens)
        return {
            "slots": [*x_BFMC.flatten(1, 2).half().numpy()],
            "slot_sizes": [*size_BS.float().numpy()],
            "slot_paths": [*paths.half().flatten(2).numpy()],
        }

    def _take_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._taken.append(args[0].detach().float().cpu())

    def _take_output(self, module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._taken.append(hidden.detach().float().cpu())

    def _take_maps(self, maps: list[MergeMap]) -> None:
        self._maps.append(list(maps))
        maps.clear()


def paths_of(assignment_BN: Tensor, place_TS2: Tensor, slots: int) -> Tensor:
    """Return where every slot was in every frame: the mean (y, x) of its tokens there, and how many they are.

    Args:
        assignment_BN: the slot of each of the T*S tokens, -1 for one that was dropped.
        place_TS2: (y, x) of each token, each in [-1, 1].

    Returns:
        [B, slots, T, 3]; (0, 0, 0) where a slot has no token in a frame.
    """
    T, S, _ = place_TS2.shape
    B = len(assignment_BN)
    frame_N = torch.arange(T).repeat_interleave(S)
    kept_BN = assignment_BN >= 0
    cell_BN = assignment_BN.clamp(min=0) * T + frame_N
    values_BN3 = torch.cat((place_TS2.flatten(0, 1), torch.ones(T * S, 1)), dim=1) * kept_BN[..., None]
    sums = torch.zeros(B, slots * T, 3).scatter_add(1, cell_BN[..., None].expand(-1, -1, 3), values_BN3)
    sums[..., :2] /= sums[..., 2:].clamp(min=1)
    return sums.unflatten(1, (slots, T))
