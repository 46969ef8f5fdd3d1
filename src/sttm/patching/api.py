"""Puts mergers into a model and takes them out again: check everything, then touch, then report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sttm.backbones import Backbone, backbone_of
from sttm.backbones.base import ClipShape, Grid, Ledger, Page, Seat
from sttm.errors import SttmError
from sttm.merging import spec_of
from sttm.merging.tokens import MergeMap, Tokens
from sttm.patching.edits import Patch
from sttm.patching.plan import Plan, build_merger
from sttm.patching.schedule import make_plan, plain_macs

# A merged model carries its `Plugged` record under this name, a block in front of which tokens merge its merger.
RECORD = "_sttm"
MERGER = "merger"


class Plugged:
    """What was done to one model: the plan, the touches that undo takes back, and the state of its forward."""

    def __init__(self, plan: Plan, patch: Patch, ledger: Ledger) -> None:
        self.plan, self.patch, self.ledger = plan, patch, ledger


def apply(
    model: nn.Module,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    clip_shape: ClipShape | None = None,
    selector: str | None = None,
    layers: Sequence[int] | None = None,
    window: int | None = None,
) -> Plan:
    """Puts token mergers into a video transformer, in place, so that it needs `compute` of its multiply-adds.

    What that does to accuracy, beside every baseline at equal multiply-adds, is in results/offshelf.md for a checkpoint
    as it is and in results/trained.md for one that is tuned; docs/evidence.md says how it was measured.

    Args:
        model: VideoMAE, TimeSformer, ViViT or V-JEPA 2 from transformers (or a family of one's own).
        compute: multiply-adds of the merged model over those of the plain one, the mergers' own included; the plan
            reaches it from below, within 0.01. 1 puts nothing in.
        method: how tokens become fewer; "sttm", or a baseline's name.
        learned: adds the trainable parts, for fine-tuning; False serves a checkpoint as it is. The model starts alike.
        clip_shape: (frames, channels, height, width) of the clips, where they are not what the config says.
        selector: how meta tokens are found (see `TokenMerger`).
        layers: the blocks to merge before, counted from 0; left out, the schedule chooses (see `make_plan`).
        window: token frames that the first merger joins to one; left out, what the method is used with.

    Returns:
        The plan: where tokens merge and what it costs.

    Example:
        >>> model = VideoMAEForVideoClassification.from_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
        >>> print(sttm.apply(model, compute=0.62))

    Raises:
        SttmError: for a model that no family knows, one that is merged already, or a compute that it cannot reach;
            the model is then as it was, byte for byte.
    """
    if is_merged(model):
        raise SttmError("this model is merged already; call sttm.remove(model) before another sttm.apply")
    backbone = backbone_of(model)
    plan = make_plan(backbone, model, compute, method, learned, clip_shape, selector, layers, window)
    install(model, plan)
    return plan


def install(model: nn.Module, plan: Plan) -> None:
    """Carries out a plan; on any error the model is left as it was."""
    backbone = backbone_of(model)
    mergers = _build(backbone, model, plan)
    patch, ledger = Patch(), Ledger(len(mergers))
    try:
        _touch(backbone, model, plan, mergers, patch, ledger)
        patch.set_attribute(model, RECORD, Plugged(plan, patch, ledger))
    except BaseException:
        patch.undo()
        raise


def remove(model: nn.Module) -> None:
    """Takes the mergers out: exactly the model it was, with the backbone's weights as they are now.

    Raises:
        SttmError: if nothing was put in.
    """
    _record(model, "sttm.remove").patch.undo()


@contextmanager
def trace(model: nn.Module) -> Iterator[list[MergeMap]]:
    """Collects what merges with what: the list gets one MergeMap a merger for every forward inside the block.

    Example:
        >>> with sttm.trace(model) as maps:
        ...     model(pixels)
        >>> maps[0].assignment.shape  # clips x tokens
    """
    ledger = _record(model, "sttm.trace").ledger
    before, ledger.maps = ledger.maps, []
    try:
        yield ledger.maps
    finally:
        ledger.maps = before


def macs(model: nn.Module, clip_shape: ClipShape | None = None) -> int:
    """Multiply-adds of one clip through a model, plain or merged, the mergers included.

    Raises:
        SttmError: for a model that no family knows, or a clip that it does not take.
    """
    if not is_merged(model):
        return plain_macs(backbone_of(model), model, clip_shape)
    plan = plan_of(model)
    if clip_shape is not None and tuple(clip_shape) != plan.clip_shape:
        raise SttmError(
            f"this model was merged for clips of {plan.clip_shape} and not {tuple(clip_shape)}; "
            "call sttm.remove(model) and sttm.apply(model, clip_shape=...) again"
        )
    return plan.macs_after


def is_merged(model: nn.Module) -> bool:
    """Whether mergers (or a plan of none, at compute=1) are in the model."""
    return RECORD in vars(model)


def plan_of(model: nn.Module) -> Plan:
    """The plan by which a model was merged."""
    return _record(model, "the plan").plan


def _record(model: nn.Module, what: str) -> Plugged:
    if not is_merged(model):
        raise SttmError(f"{what} needs a merged model and this one is plain; call sttm.apply(model) first")
    record: Plugged = getattr(model, RECORD)
    return record


def _build(backbone: Backbone, model: nn.Module, plan: Plan) -> list[nn.Module]:
    """The mergers, on the device and in the precision of the block each stands before."""
    built: list[nn.Module] = []
    for merger in plan.mergers:
        weight = next(backbone.blocks(model)[merger.layer].parameters())
        module = build_merger(plan, merger, backbone.width(model))
        built.append(module.to(device=weight.device, dtype=weight.dtype).train(model.training))
    return built


def _touch(
    backbone: Backbone, model: nn.Module, plan: Plan, mergers: list[nn.Module], patch: Patch, ledger: Ledger
) -> None:
    if not mergers:
        return
    grid, blocks = backbone.grid(model, plan.clip_shape), backbone.blocks(model)
    seats = [Seat(m.layer, index, m.frames, m.tokens) for index, m in enumerate(plan.mergers)]
    backbone.fit_blocks(patch, model, seats, ledger, grid)
    if spec_of(plan.method).sized:
        backbone.weigh_by_size(patch, model, seats, ledger)
    frames, tokens = grid.frames, grid.tokens
    for seat, merger in zip(seats, mergers, strict=True):
        patch.add_module(blocks[seat.block], MERGER, merger)
        patch.before(blocks[seat.block], Seam(backbone, ledger, seat.index, grid, frames, tokens))
        frames, tokens = seat.frames, seat.tokens


class Seam:
    """Merges the hidden states on their way into a block.

    A slot that attention sees is written to the ledger first, where attention, rotary positions, pooling and the next
    merger read what it stands for.
    """

    def __init__(self, backbone: Backbone, ledger: Ledger, index: int, grid: Grid, frames: int, tokens: int) -> None:
        self.backbone, self.ledger, self.index = backbone, ledger, index
        self.grid, self.frames, self.tokens = grid, frames, tokens

    def __call__(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        merged, merge_map = getattr(block, MERGER)(self._read(args[0]), mapped=self.ledger.maps is not None)
        page = Page(merged.size_BTS, merged.position_BTS3, self.grid.prefix)
        self.ledger.write(self.index, page, merge_map)
        return (self.backbone.join(merged), *args[1:])

    def _read(self, hidden_BNC: Tensor) -> Tokens:
        expected = self.grid.prefix + self.frames * self.tokens
        if hidden_BNC.shape[1] != expected:
            raise SttmError(
                f"this model was merged for clips of {expected} tokens and got one of {hidden_BNC.shape[1]}; "
                "call sttm.remove(model), then sttm.apply(model, clip_shape=...) with the shape of your clips"
            )
        x_BTSC, prefix_BPC = self.backbone.split(hidden_BNC, self.frames, self.grid.prefix)
        if self.index == 0:
            return Tokens.of_grid(x_BTSC, self.grid.height, self.grid.width, prefix_BPC)
        page = self.ledger.read(self.index - 1)
        return Tokens(x_BTSC, page.size_BFM, page.position_BFM3, prefix_BPC)
