"""The hooks of a merged model: they open the state of a forward, merge before or inside blocks, hand the slots on.

Legend: B clips, T frames, S tokens in a frame, F frames and M slots in a frame after a merger, C width, N tokens, P
prefix tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones.base import Attention, Backbone, Grid, Layer, Slots, patches
from sttm.errors import SttmError
from sttm.merging import MethodSpec
from sttm.merging.tokens import MergeMap, Tokens
from sttm.patching.plan import MergerPlan, Plan
from sttm.patching.state import Key, MergeState, Step, StepSlots, current, local

# A block before or inside which tokens merge holds its merger under this name.
MERGER = "merger"

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class OpenForward:
    """Open the state of a forward when the model, or its base by itself, is called."""

    def __init__(self, key: Key, backbone: Backbone, plan: Plan, grid: Grid, is_base: bool) -> None:
        self.key, self.backbone, self.grid, self.is_base = key, backbone, grid, is_base
        self.clip_shape, self.restored = plan.clip_shape, plan.restore

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if self.is_base and local.states and local.states[-1].key is self.key and not local.states[-1].entered:
            local.states[-1].entered = True  # the model opened it
            return
        pixels = args[0] if args else kwargs.get(getattr(module, "main_input_name", ""))
        pixels = pixels if isinstance(pixels, Tensor) else None
        if pixels is not None:
            self._check(module, pixels)
        self.backbone.check_call(module, args, kwargs, self.restored)
        maps = [maps for key, maps in local.traces if key is self.key]
        state = MergeState(self.key, module, maps=maps, entered=self.is_base, pixels=pixels, steps=len(local.steps))
        local.states.append(state)

    def _check(self, module: nn.Module, pixels: Tensor) -> None:
        given = self.backbone.clip_of(pixels)
        if self.backbone.pictures and (frames := self.clip_shape[0]) > 1:
            count = pixels.shape[0]  # len() would fix it in an export
            if count % frames:
                raise SttmError(
                    f"this model was merged for clips of {frames} pictures each and got {count} pictures, which "
                    "are no whole clips; give the pictures of whole clips, one after the other"
                )
            given = frames, *given[1:]
        # `grid` raises where the family takes no such clip.
        if given != self.clip_shape and self.backbone.grid(module, given) != self.grid:
            raise SttmError(
                f"this model was merged for clips of {self.clip_shape} (frames, channels, height, width) and got "
                f"{given}; call sttm.remove(model), then sttm.apply(model, clip_shape={given})"
            )


class CloseForward:
    """Close the state that a module opened, whether its forward succeeded or not."""

    def __call__(self, module: nn.Module, args: Args, output: Any) -> None:
        if local.states and local.states[-1].opener is module:
            steps = local.states.pop().steps
            while len(local.steps) > steps:  # of layers that raised
                local.steps.pop()


class HandOn:
    """Give a layer the slots of this forward as an argument."""

    def __init__(self, key: Key, keyword: str | None, position: int | None) -> None:
        self.key, self.keyword, self.position = key, keyword, position

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        return self.hand_on(module, args, kwargs, current(self.key).slots)

    def hand_on(self, module: nn.Module, args: Args, kwargs: Kwargs, slots: Slots | None) -> tuple[Args, Kwargs]:
        if self.keyword is None:
            return args, kwargs | {WrappedForward.KEYWORD: (module, slots)}
        if self.position is not None:
            args = args[: self.position] + args[self.position + 1 :]
        return args, kwargs | {self.keyword: slots}


class Merger(HandOn):
    """What a merger before a block and one inside it share: where it is, and what goes into it and comes out."""

    def __init__(
        self,
        key: Key,
        layer: Layer,
        backbone: Backbone,
        grid: Grid,
        merger: MergerPlan,
        spec: MethodSpec,
        *,
        kept: bool,
    ) -> None:
        super().__init__(key, layer.keyword, layer.position)
        self.backbone, self.grid, self.merger, self.spec, self.kept = backbone, grid, merger, spec, kept

    def tokens(self, module: Any, hidden_BNC: Tensor, slots: Slots | None) -> Tokens:
        """Return the hidden states as tokens of a merger; those of the plain grid where there are no slots yet."""
        frames, tokens = self.merger.frames_before, self.merger.tokens_before
        x_BTSC, prefix_BPC = self.backbone.split(hidden_BNC, frames, tokens, self.grid.prefix)
        if slots is None:
            return Tokens.of_grid(x_BTSC, self.grid.height, self.grid.width, prefix_BPC, module.positions())
        return Tokens(x_BTSC, slots.size_BFM, slots.position_BFM3, prefix_BPC)

    def slots(self, tokens: Tokens) -> Slots:
        return self.backbone.slots(tokens, self.grid, self.spec.sized)

    def join(self, x_BFMC: Tensor, prefix_BPC: Tensor | None) -> Tensor:
        return self.backbone.join(x_BFMC, prefix_BPC, self.grid.prefix)

    def record(self, state: MergeState, merge_map: MergeMap | None, slots: Slots) -> None:
        """Write what merged into the state of the forward."""
        for maps in state.maps:
            assert merge_map is not None
            maps.append(merge_map)
        if self.kept:
            assert merge_map is not None
            state.kept.append(merge_map)
        state.slots = slots


class MergeBefore(Merger):
    """Merge the hidden states on their way into a block, and hand their slots on to it."""

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        state = current(self.key)
        merger = getattr(module, MERGER)
        tokens = self.tokens(merger, args[0], state.slots)
        if self.spec.reads == "pixels" and state.slots is None and state.pixels is not None:
            tokens.cue_BTSD = patches(state.pixels, self.grid)
        merged, merge_map = merger(tokens, mapped=bool(state.maps) or self.kept)
        self.record(state, merge_map, self.slots(merged))
        hidden_BNC = self.join(merged.x_BTSC, merged.prefix_BPC)
        return self.hand_on(module, (hidden_BNC, *args[1:]), kwargs, state.slots)


class MergeInside(Merger):
    """Merge between the attention and the MLP of a block, by what the attention computes; four hooks.

    Let u be attention plus residual. The MLP gets the merged u', and each token the result m of its slot; so tokens
    leave the block as u + m. Their average over a slot is u' + m, as the weights of an average sum to one: what a block
    that merges there returns. No forward is copied. Only `__call__` and `finish` see the state of the forward: gradient
    checkpointing runs what is between them a second time, maybe in another thread and beside other forwards.
    """

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Give the block its slots and a new step."""
        merger, slots = getattr(module, MERGER), current(self.key).slots
        if slots is None:
            slots = self.backbone.slots(self.tokens(merger, args[0], None), self.grid, sized=False)
        step = Step(merger, self.spec.reads, current(self.key).slots)
        handed = StepSlots(slots.size_BFM, slots.position_BFM3, slots.log_size_BN, slots.prefix, step)
        return self.hand_on(module, args, kwargs, handed)

    def merge(self, module: nn.Module, args: Args) -> Args:
        """Merge what the norm before the MLP gets."""
        step = local.steps[-1]
        if step.map is None:
            self._match(args[0], step)
        assert step.map is not None
        return self._averages(args[0], step.map), *args[1:]

    def unmerge(self, module: nn.Module, args: Args, output: Tensor) -> Tensor:
        """Return for each token what the MLP returned for its slot."""
        merge_map = local.steps.pop().map
        assert merge_map is not None
        x_BFMC, prefix_BPC = self.backbone.split(output, self.merger.frames, self.merger.tokens, self.grid.prefix)
        x_BTSC = merge_map.unmerge(x_BFMC.flatten(1, 2)).unflatten(1, merge_map.grid[0])
        return self.join(x_BTSC, prefix_BPC)

    def finish(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Return the slots that the block leaves, and write them into the state."""
        assert self.keyword is not None, "a layer that merges inside gets its step by an argument"
        step = kwargs[self.keyword].step
        self.record(current(self.key), step.map, step.after)
        if isinstance(output, tuple):
            return self._moved(output[0], step), *output[1:]
        return self._moved(output, step)

    @torch.no_grad()
    def _match(self, hidden_BNC: Tensor, step: Step) -> None:
        """Find what merges with what; no gradient goes through the choice, nor through the weights."""
        frames, tokens = self.merger.frames_before, self.merger.tokens_before
        assert step.cue_BNE is not None, "attention ran without its slots"
        given = self.tokens(step.merger, hidden_BNC, step.before)
        cue_BNE = step.cue_BNE[:, : hidden_BNC.shape[1]]  # without tokens that the layer put behind the others
        given.cue_BTSD, _ = self.backbone.split(cue_BNE, frames, tokens, self.grid.prefix)
        merged, step.map = step.merger(given, moved=False)
        step.after, step.cue_BNE = self.slots(merged), None

    def _moved(self, hidden_BNC: Tensor, step: Step) -> Tensor:
        """Return the slots of what a block computed for each token, with their motion feature where there is one."""
        assert step.map is not None and step.after is not None
        slots_BNC = self._averages(hidden_BNC, step.map)
        merger: Any = step.merger
        if merger.motion is None:
            return slots_BNC
        x_BFMC, prefix_BPC = self.backbone.split(slots_BNC, *step.map.grid[1], self.grid.prefix)
        merged = Tokens(x_BFMC, step.after.size_BFM, step.after.position_BFM3)
        return self.join(merger.move(self.tokens(merger, hidden_BNC, step.before), merged), prefix_BPC)

    def _averages(self, hidden_BNC: Tensor, merge_map: MergeMap) -> Tensor:
        """Average the hidden states of the tokens of each slot."""
        x_BTSC, prefix_BPC = self.backbone.split(hidden_BNC, *merge_map.grid[0], self.grid.prefix)
        x_BFMC = merge_map.merge(x_BTSC.flatten(1, 2)).unflatten(1, merge_map.grid[1])
        return self.join(x_BFMC, prefix_BPC)


class TakeSlots:
    """Take the slots from an attention module's arguments, and keep them for the one call of its attention function."""

    def __init__(self, keyword: str, attention: Attention, backbone: Backbone, grid: Grid) -> None:
        self.keyword, self.backbone, self.grid = keyword, backbone, grid
        self.rotary, self.added, self.bias = attention.rotary, attention.added, attention.bias

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        kwargs = dict(kwargs)
        slots: Slots | None = kwargs.pop(self.keyword, None)
        # Never without sizes in silence: a version of transformers whose layers hand nothing on would do that.
        assert slots is not None, f"{type(module).__name__} was called without {self.keyword}"
        if self.rotary is not None:
            kwargs[self.rotary] = self.backbone.rotary(kwargs[self.rotary], slots, self.grid, module)
        if self.added and slots.log_size_BN is not None:
            slots = replace(slots, log_size_BN=nn.functional.pad(slots.log_size_BN, (0, self.added)))
        if self.bias is None:
            local.slots = slots
        elif slots.log_size_BN is not None:
            kwargs[self.bias] = slots.log_size_BN[:, None, None].to(args[0].dtype)
        return args, kwargs


class DropSlots:
    """Take the slots from the arguments of an attention module over other tokens."""

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        return args, {name: value for name, value in kwargs.items() if name != self.keyword}


class WrappedForward:
    """The forward of a layer that hands nothing on: it runs with its slots in `local`, and checkpoints by itself.

    It knows the layer from the call, so that a replica runs with its own weights.
    """

    KEYWORD = "sttm_call"

    def __init__(self, layer_class: type[nn.Module]) -> None:
        self.layer_class = layer_class
        # transformers' layers wrap their forward for checkpointing, which takes no argument beyond the layer's own.
        self.forward: Any = inspect.unwrap(layer_class.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, slots = kwargs.pop(self.KEYWORD)
        run = partial(self._run, module, slots, **kwargs)
        if getattr(module, "gradient_checkpointing", False) and module.training:
            return module._gradient_checkpointing_func(run, *args)
        return run(*args)

    def _run(self, module: nn.Module, slots: Slots, *args: Any, **kwargs: Any) -> Any:
        local.slots = slots
        try:
            return self.forward(module, *args, **kwargs)
        finally:
            local.slots = None

    def __reduce__(self) -> tuple[Any, ...]:
        return WrappedForward, (self.layer_class,)


class RotaryPositions:
    """Stand in for `attention.get_position_ids`: where the slots are, instead of what their index would say."""

    def __init__(self, backbone: Backbone, grid: Grid) -> None:
        self.backbone, self.grid = backbone, grid

    def __call__(self, hidden_BNC: Tensor, masks: Tensor | None = None) -> tuple[Tensor, ...] | None:
        assert local.slots is not None, "attention ran without its slots"
        return self.backbone.rotary(hidden_BNC, local.slots, self.grid)
