"""Put mergers into a model and take them out again: check everything, then edit, then report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from sttm.backbones import Backbone, backbone_of
from sttm.backbones.base import ClipShape, Grid, Layer, Pooling
from sttm.errors import SttmError
from sttm.merging import spec_of
from sttm.merging.tokens import MergeMap
from sttm.patching import behind, hooks
from sttm.patching.attention import ConfigView, SizedConfig, WeighProbabilities
from sttm.patching.edits import Edits
from sttm.patching.initial import InitWeights
from sttm.patching.plan import MergerPlan, Plan, build_merger
from sttm.patching.saving import SavePretrained
from sttm.patching.schedule import make_plan, plain_macs
from sttm.patching.state import Key, local

# A merged model carries its `Merged` record under this name.
RECORD = "_sttm"


class Merged:
    """What was done to one model: the plan, the edits that undo takes back, and the key of its forwards."""

    def __init__(self, plan: Plan, edits: Edits, key: Key) -> None:
        self.plan, self.edits, self.key = plan, edits, key


# Over 40 lines: most are the options and what they mean.
def apply(
    model: nn.Module,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    clip_shape: ClipShape | None = None,
    selector: str | None = None,
    layers: Sequence[int] | None = None,
    window: int | None = None,
    motion: bool | None = None,
    restore: bool = False,
) -> Plan:
    """Put token mergers into a video transformer, in place, so that it needs `compute` of its multiply-adds.

    What that does to accuracy, beside every baseline at equal multiply-adds, is in docs/evidence.md.

    Args:
        model: of a family that `sttm models` lists (or one of one's own); inside a PeftModel or DDP, the model in it
            is edited.
        compute: multiply-adds of the merged model over those of the plain one, the mergers' own included; the plan
            reaches it from below, within 0.01. 1 puts nothing in.
        method: how tokens become fewer; "sttm", or the name of a baseline.
        learned: adds the trainable parts, for fine-tuning; False serves a checkpoint as it is. The model starts alike.
        clip_shape: (frames, channels, height, width) of the clips, where they are not what the config says. To a model
            of pictures, a clip of several frames is so many pictures in a row, and windows of them become one sequence.
        selector: how meta tokens are found (see `TokenMerger`).
        layers: the blocks to merge before, or inside for a method that does (ToMe, PiToMe, EViT), counted from 0; left
            out, the schedule chooses (see `make_plan`).
        window: token frames that the first merger joins to one; left out, what the method is used with.
        motion: whether slots get the motion feature, which has to be trained; left out, the learned merger has it and
            baselines have not.
        restore: gives the tokens back as the first grid behind the last block, each as its slot, for those who read
            tokens; else the model's token outputs are slots. Prefix tokens stay as they are.

    Returns:
        The plan: where tokens merge and what it costs.

    Example:
        >>> model = VideoMAEForVideoClassification.from_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
        >>> print(sttm.apply(model, compute=0.62))

    Raises:
        SttmError: for a model that no family knows, one that is merged already, or a compute that it cannot reach;
            the model is then as it was, byte for byte.
    """
    model = check_plain(model, "sttm.apply", learned=learned or bool(motion))
    backbone = backbone_of(model)
    plan = make_plan(backbone, model, compute, method, learned, clip_shape, selector, layers, window, motion, restore)
    install(model, plan)
    return plan


def install(model: nn.Module, plan: Plan) -> None:
    """Carry out a plan; on any error the model is left as it was."""
    backbone = backbone_of(model)
    mergers = _build(backbone, model, plan)
    edits, key = Edits(), Key()
    try:
        if mergers:
            Installation(backbone, model, plan, edits, key).run(mergers)
            # Without mergers it is the plain model, and what it saves is a plain folder.
            edits.set_attribute(model, "save_pretrained", SavePretrained(model, plan))
            build = partial(_build, backbone, model, plan)
            for owner in {id(part): part for part in (model, backbone.base(model))}.values():
                if hasattr(owner, "_initialize_weights"):  # a model of transformers
                    edits.set_attribute(owner, "_init_weights", InitWeights(owner, mergers, build))
        edits.set_attribute(model, RECORD, Merged(plan, edits, key))
    except BaseException:
        edits.undo()
        raise


def remove(model: nn.Module) -> None:
    """Take the mergers out: exactly the model it was, weights as they are now; raise SttmError for a plain one."""
    _record(model, "sttm.remove").edits.undo()


@contextmanager
def trace(model: nn.Module) -> Iterator[list[MergeMap]]:
    """Collect what merges with what: the list gets one MergeMap a merger for every forward inside the block.

    Only forwards of this thread are collected, and none after the block has ended.

    Example:
        >>> with sttm.trace(model) as maps:
        ...     model(pixels)
        >>> maps[0].assignment.shape  # clips x tokens
    """
    entry: tuple[Key, list[MergeMap]] = (_record(model, "sttm.trace").key, [])
    local.traces.append(entry)
    try:
        yield entry[1]
    finally:
        # By identity: two lists that hold equal maps are still two.
        local.traces[:] = [other for other in local.traces if other is not entry]


def macs(model: nn.Module, clip_shape: ClipShape | None = None) -> int:
    """Return the multiply-adds of one clip, the mergers included; raise SttmError for a clip that it does not take."""
    if not is_merged(model):
        model = unwrap(model)
        return plain_macs(backbone_of(model), model, clip_shape)
    plan = plan_of(model)
    if clip_shape is not None and tuple(clip_shape) != plan.clip_shape:
        wrong = f"this model was merged for clips of {plan.clip_shape} and not {tuple(clip_shape)}"
        raise SttmError(f"{wrong}; call sttm.remove(model) and sttm.apply(model, clip_shape=...) again")
    return plan.macs_after


def check_plain(model: nn.Module, caller: str, *, learned: bool) -> nn.Module:
    """Return the model inside its wrappers; raise SttmError if it is merged, or if a wrapper would not see mergers."""
    _check_wrappers(model, learned)
    inner = unwrap(model)
    if is_merged(inner):
        raise SttmError(f"this model is merged already; call sttm.remove(model) before another {caller}")
    return inner


def is_merged(model: nn.Module) -> bool:
    """Return whether mergers (or a plan of none, at compute=1) are in the model."""
    return RECORD in vars(unwrap(model))


def plan_of(model: nn.Module) -> Plan:
    """Return the plan by which a model was merged."""
    return _record(model, "the plan").plan


def unwrap(model: Any) -> nn.Module:
    """Return the model inside DDP, DataParallel, torch.compile and PEFT; raise SttmError for what is no model."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif isinstance(inner, torch._dynamo.OptimizedModule):
            inner = inner._orig_mod
        elif base := getattr(inner, "get_base_model", None):  # PEFT's models, whose package need not be installed
            inner = base()
        else:
            return inner
    advice = f"sttm.load({inner[:80]!r}) gives one" if isinstance(inner, str) else "give a model of transformers"
    raise SttmError(f"{str(inner)[:80]!r} is of type {type(inner).__name__}, not a model; {advice}")


def _check_wrappers(model: Any, learned: bool) -> None:
    """Raise SttmError for a wrapper that would not see what `apply` puts in."""
    compiled = isinstance(model, torch._dynamo.OptimizedModule) or getattr(model, "_compiled_call_impl", None)
    if compiled is not None and compiled is not False:
        raise SttmError("this model is compiled, and compiled code would not see the mergers; call sttm.apply first")
    if learned and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise SttmError("DDP would not train mergers that are put in now; call sttm.apply before wrapping the model")


def _record(model: nn.Module, what: str) -> Merged:
    if not is_merged(model):
        raise SttmError(f"{what} needs a merged model and this one is plain; call sttm.apply(model) first")
    return getattr(unwrap(model), RECORD)


def _build(backbone: Backbone, model: nn.Module, plan: Plan) -> list[nn.Module]:
    """Return the mergers, on the device and in the precision of the block of each."""
    built: list[nn.Module] = []
    for number, merger in enumerate(plan.mergers):
        weight = next(backbone.blocks(model)[merger.layer].parameters())
        module = build_merger(backbone, model, plan, merger, None if number else backbone.grid(model, plan.clip_shape))
        built.append(module.to(device=weight.device, dtype=weight.dtype).train(model.training))
    return built


class Installation:
    """All edits of one model that carry out a plan."""

    def __init__(self, backbone: Backbone, model: Any, plan: Plan, edits: Edits, key: Key) -> None:
        self.backbone, self.model, self.plan, self.edits, self.key = backbone, model, plan, edits, key
        self.grid: Grid = backbone.grid(model, plan.clip_shape)
        self.spec = spec_of(plan.method)

    def run(self, mergers: list[nn.Module]) -> None:
        self._open_and_close()
        planned = {m.layer: (m, module) for m, module in zip(self.plan.mergers, mergers, strict=True)}
        restore, pooling = self.plan.restore, self.backbone.pooling(self.model)
        first = pooling is not None and pooling.reads == "first"
        frames, tokens = 0, 0
        for number, block in enumerate(self.backbone.blocks(self.model)):
            layer = self.backbone.layer(block)
            hook: hooks.HandOn
            if number in planned:
                merger, module = planned[number]
                frames, tokens = merger.frames, merger.tokens
                self.edits.add_module(block, hooks.MERGER, module)
                hook = self._merger(layer, merger, kept=first or restore)
            elif frames:
                hook = hooks.HandOn(self.key, layer.keyword, layer.position)
            else:
                continue
            self._give_slots(layer, hook)
            if own := self.backbone.block_settings(self.model, frames, tokens):
                self.edits.set_attribute(block, "config", ConfigView(block.config, **own))
        if restore:
            self.edits.after(block, behind.Restore(self.key, self.backbone, self.grid))
            return
        for layer in self.backbone.head_layers(self.model):
            self._give_slots(layer, hooks.HandOn(self.key, layer.keyword, layer.position))
        if pooling is not None and (self.spec.sized or first):
            self._pool(pooling)

    def _open_and_close(self) -> None:
        base = self.backbone.base(self.model)
        for module in (self.model,) if base is self.model else (self.model, base):
            opened = hooks.OpenForward(self.key, self.backbone, self.plan, self.grid, module is base)
            self.edits.before(module, opened, with_kwargs=True)
            self.edits.after(module, hooks.CloseForward(), always=True)

    def _pool(self, pooling: Pooling) -> None:
        """Let a head that reads the tokens itself read merged ones."""
        if pooling.reads == "keys":
            self.edits.before(pooling.module, behind.WeighKeys(self.key), with_kwargs=True)
            return
        self.edits.after(self.backbone.base(self.model), behind.KeepHidden(self.key))
        read = behind.ReadTokens(self.key, pooling.reads, self.backbone, self.grid.prefix)
        self.edits.before(pooling.module, read)

    def _merger(self, layer: Layer, merger: MergerPlan, *, kept: bool) -> hooks.Merger:
        """Return the hook before a layer that merges; put the others of a merger inside it where they belong."""
        if not merger.inside:
            return hooks.MergeBefore(self.key, layer, self.backbone, self.grid, merger, self.spec, kept=kept)
        assert layer.norm is not None and layer.mlp is not None, "nothing can merge inside this layer"
        inside = hooks.MergeInside(self.key, layer, self.backbone, self.grid, merger, self.spec, kept=kept)
        self.edits.before(layer.norm, inside.merge)
        self.edits.after(layer.mlp, inside.unmerge)
        self.edits.after(layer.module, inside.finish, with_kwargs=True)
        return inside

    def _give_slots(self, layer: Layer, hook: hooks.HandOn) -> None:
        """Let a layer get its slots, and its attention weigh its keys by them."""
        self.edits.before(layer.module, hook, with_kwargs=True)
        if layer.keyword is None:
            if "forward" in vars(layer.module):
                raise SttmError(
                    f"a {type(layer.module).__name__} of this model has a forward of its own (as accelerate's hooks "
                    "give it); call sttm.apply before they are put in"
                )
            self.edits.set_attribute(layer.module, "forward", hooks.WrappedForward(type(layer.module)))
        for attention in layer.attention:
            if attention.dropout is not None:
                self.edits.before(attention.dropout, WeighProbabilities(attention.over))
                continue
            assert layer.keyword is not None, "attention by the interface needs a keyword that reaches it"
            take = hooks.TakeSlots(layer.keyword, attention, self.backbone, self.grid)
            self.edits.before(attention.module, take, with_kwargs=True)
            if attention.bias is None:
                self.edits.set_attribute(attention.module, "config", SizedConfig(attention.module.config))
            if hasattr(attention.module, "get_position_ids"):
                rotary = hooks.RotaryPositions(self.backbone, self.grid)
                self.edits.set_attribute(attention.module, "get_position_ids", rotary)
        for module in layer.aside:
            assert layer.keyword is not None
            self.edits.before(module, hooks.DropSlots(layer.keyword), with_kwargs=True)
