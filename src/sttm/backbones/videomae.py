"""VideoMAE (Tong et al., NeurIPS 2022): joint attention, no class token, a head on the mean of all tokens."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from sttm.backbones.base import Backbone, ClipShape, Grid, Ledger, Seat, fixed_clip, pair, seat_of, transformer_macs
from sttm.errors import SttmError
from sttm.patching.edits import Patch


class VideoMAE(Backbone):
    family = "videomae"
    example = "MCG-NJU/videomae-base-finetuned-kinetics"
    classes = ("VideoMAEForVideoClassification", "VideoMAEModel")

    def blocks(self, model: Any) -> Any:
        return _base(model).encoder.layer

    def check(self, model: Any) -> None:
        if not model.config.use_mean_pooling and hasattr(model, "classifier"):
            raise SttmError(
                "this VideoMAE classifies by its first token (use_mean_pooling=False), which merging would move; "
                "use a checkpoint with use_mean_pooling=True, as all published ones have"
            )

    def clip_shape(self, model: Any) -> ClipShape:
        config = model.config
        return config.num_frames, config.num_channels, *pair(config.image_size)

    def grid(self, model: Any, clip_shape: ClipShape) -> Grid:
        fixed_clip(self.family, self.clip_shape(model), clip_shape)
        config = model.config
        (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
        return Grid(config.num_frames // config.tubelet_size, height // patch_height, width // patch_width, prefix=0)

    def outer_macs(self, model: Any, clip_shape: ClipShape, frames: int, tokens: int) -> int:
        config, grid = model.config, self.grid(model, clip_shape)
        patch_height, patch_width = pair(config.patch_size)
        voxels = config.num_channels * config.tubelet_size * patch_height * patch_width
        head = config.num_labels if hasattr(model, "classifier") else 0
        return grid.frames * grid.tokens * voxels * config.hidden_size + config.hidden_size * head

    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        return transformer_macs(frames * tokens, model.config.hidden_size, model.config.intermediate_size)

    def weigh_by_size(self, patch: Patch, model: Any, seats: list[Seat], ledger: Ledger) -> None:
        keyed = []
        for number, block in enumerate(self.blocks(model)):
            if seat := seat_of(number, seats):
                keyed.append((block.attention.attention, seat.index))
        from sttm.patching.attention import weigh_keys

        weigh_keys(patch, model, keyed, ledger)
        if hasattr(model, "fc_norm"):
            pool = SizedMean(ledger, seats[-1].index)
            patch.after(_base(model), pool.keep)
            patch.before(model.fc_norm, pool.mean)


class SizedMean:
    """Gives the head the mean of the tokens by size, where its forward takes the plain mean."""

    def __init__(self, ledger: Ledger, index: int) -> None:
        self.ledger, self.index = ledger, index
        self.hidden_BNC: Tensor | None = None

    def keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.hidden_BNC = output[0]

    def mean(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden_BNC, self.hidden_BNC = self.hidden_BNC, None
        assert hidden_BNC is not None, "the head ran without its backbone"
        size_BN = self.ledger.read(self.index).size_BFM.flatten(1)
        weight_BN = size_BN / size_BN.sum(-1, keepdim=True)
        return ((hidden_BNC * weight_BN[..., None].to(hidden_BNC.dtype)).sum(1),)

    def __deepcopy__(self, memo: dict[int, Any]) -> SizedMean:
        return SizedMean(deepcopy(self.ledger, memo), self.index)


def _base(model: Any) -> Any:
    return getattr(model, "videomae", model)
