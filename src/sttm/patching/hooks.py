"""The hooks of a merged model: they open the state of a forward, merge in front of blocks, and hand the slots on.

Legend: B clips, T frames, C width, N tokens, P prefix tokens.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import Tensor, nn

from sttm.backbones.base import Backbone, ClipShape, Grid, Layer, Slots
from sttm.errors import SttmError
from sttm.merging.tokens import Tokens
from sttm.patching.plan import MergerPlan
from sttm.patching.state import Key, MergeState, current, local

# A block in front of which tokens merge holds its merger under this name.
MERGER = "merger"

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class OpenForward:
    """Open the state of a forward when the model, or its base by itself, is called."""

    def __init__(self, key: Key, backbone: Backbone, clip_shape: ClipShape, grid: Grid, is_base: bool) -> None:
        self.key, self.backbone, self.clip_shape, self.grid, self.is_base = key, backbone, clip_shape, grid, is_base

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if self.is_base and local.states and local.states[-1].key is self.key and not local.states[-1].entered:
            local.states[-1].entered = True  # the model opened it
            return
        if kwargs.get("attention_mask") is not None:
            raise SttmError(
                "a merged model takes no attention mask, as its tokens are not those of the mask; leave it out"
            )
        self._check(module, args, kwargs)
        maps = [maps for key, maps in local.traces if key is self.key]
        local.states.append(MergeState(self.key, module, maps=maps, entered=self.is_base))

    def _check(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        pixels = args[0] if args else kwargs.get(getattr(module, "main_input_name", ""))
        if not isinstance(pixels, Tensor):
            return
        given = self.backbone.clip_of(pixels)
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
            local.states.pop()


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


class Merge(HandOn):
    """Merge the hidden states on their way into a block, and hand their slots on to it."""

    def __init__(
        self, key: Key, layer: Layer, backbone: Backbone, grid: Grid, merger: MergerPlan, *, sized: bool, first: bool
    ) -> None:
        super().__init__(key, layer.keyword, layer.position)
        self.backbone, self.grid, self.merger, self.sized, self.first = backbone, grid, merger, sized, first

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        state = current(self.key)
        tokens = self._tokens(args[0], state.slots)
        merged, merge_map = getattr(module, MERGER)(tokens, mapped=bool(state.maps) or self.first)
        for maps in state.maps:
            maps.append(merge_map)
        if self.first:
            went_B = merge_map.assignment.new_zeros(len(args[0])) if state.first_B is None else state.first_B
            state.first_B = merge_map.assignment.gather(1, went_B[:, None]).squeeze(1)
        state.slots = self.backbone.slots(merged, self.grid.prefix, self.sized)
        hidden_BNC = self.backbone.join(merged.x_BTSC, merged.prefix_BPC)
        return self.hand_on(module, (hidden_BNC, *args[1:]), kwargs, state.slots)

    def _tokens(self, hidden_BNC: Tensor, slots: Slots | None) -> Tokens:
        frames, tokens = self.merger.frames_before, self.merger.tokens_before
        x_BTSC, prefix_BPC = self.backbone.split(hidden_BNC, frames, tokens, self.grid.prefix)
        if slots is None:
            return Tokens.of_grid(x_BTSC, self.grid.height, self.grid.width, prefix_BPC)
        return Tokens(x_BTSC, slots.size_BFM, slots.position_BFM3, prefix_BPC)


class TakeSlots:
    """Take the slots from an attention module's arguments, and keep them for the one call of its attention function."""

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        kwargs = dict(kwargs)
        local.slots = kwargs.pop(self.keyword, None)
        # Never without sizes in silence: a version of transformers whose layers hand nothing on would do that.
        assert local.slots is not None, f"{type(module).__name__} was called without {self.keyword}"
        return args, kwargs


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


class KeepHidden:
    """Keep what the base returns, for a head that reads the tokens itself."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: Args, output: Any) -> None:
        if local.states and local.states[-1].key is self.key:
            local.states[-1].hidden_BNC = output[0]


class ReadTokens:
    """Give the head what it reads of merged tokens: their mean by size, or the slot that the first token went to."""

    def __init__(self, key: Key, reads: str) -> None:
        self.key, self.reads = key, reads

    def __call__(self, module: nn.Module, args: Args) -> tuple[Tensor]:
        state = current(self.key)
        hidden_BNC: Tensor = state.hidden_BNC
        if self.reads == "first":
            assert state.first_B is not None
            index_B1C = state.first_B[:, None, None].expand(-1, 1, hidden_BNC.shape[-1])
            return (hidden_BNC.gather(1, index_B1C).squeeze(1),)
        assert state.slots is not None
        size_BN = state.slots.size_BFM.flatten(1)
        weight_BN = size_BN / size_BN.sum(-1, keepdim=True)
        return ((hidden_BNC * weight_BN[..., None].to(hidden_BNC.dtype)).sum(1),)
