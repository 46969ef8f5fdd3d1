"""The contract of every method: what a TokenReducer promises, by itself and as a module of torch."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sttm
from sttm.merging import METHODS, method_named, spec_of
from sttm.merging.tokens import Tokens
from tests.merging.helpers import (
    DROPPING,
    MODES,
    UNSIZED,
    B,
    C,
    H,
    S,
    T,
    W,
    cued,
    every_method,
    every_mode,
    reducer,
    tokens,
)


@every_mode
def test_macs_of_one_are_what_torch_counts(name: str, learned: bool) -> None:
    module = reducer(name, 2, 11, learned=learned).to("meta")
    given = Tokens.of_grid(torch.empty(1, T, S, C, device="meta"), H, W)
    given.cue_BTSD = torch.empty_like(given.x_BTSC)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.float()(given)
    assert counter.get_total_flops() / 2 == module.total_macs(T, S)


@every_method
def test_sizes_and_means(name: str) -> None:
    given = tokens()
    merged, who = reducer(name)(given)
    if name in UNSIZED:
        assert (merged.size_BTS == 1).all()
    else:
        went = given.size_BTS.flatten(1) * (who.assignment >= 0)
        torch.testing.assert_close(merged.size_BTS.sum((1, 2)), went.sum(1))
    if name not in UNSIZED | DROPPING and spec_of(name).training != "required":
        before = (given.size_BTS[..., None] * given.x_BTSC).sum((1, 2))
        torch.testing.assert_close((merged.size_BTS[..., None] * merged.x_BTSC).sum((1, 2)), before)


@every_method
def test_a_constant_stays_constant(name: str) -> None:
    given = tokens()
    module = reducer(name)
    merged, who = module(replace(given, x_BTSC=torch.full_like(given.x_BTSC, 3.25)))
    torch.testing.assert_close(merged.x_BTSC, torch.full_like(merged.x_BTSC, 3.25))
    assert merged.size_BTS.isfinite().all() and merged.position_BTS3.isfinite().all()
    assert who.assignment.max() < module.frames * module.tokens


@every_method
def test_a_dropped_token_leaves_nothing_and_a_kept_one_everything(name: str) -> None:
    given = tokens()
    merged, who = reducer(name)(given)
    assert ((who.assignment < 0).any()) == (name in DROPPING)
    if name in DROPPING:
        flat = given.x_BTSC.flatten(1, 2)
        assert torch.equal(merged.x_BTSC.flatten(1, 2), torch.stack([flat[b, who.meta[b]] for b in range(B)]))
        assert torch.equal(who.assignment.gather(1, who.meta), torch.arange(who.meta.shape[1]).expand(B, -1))
    assert merged.prefix_BPC is given.prefix_BPC
    assert reducer(name)(given, mapped=False)[1] is None


@every_mode
def test_a_map_merges_as_the_method_does(name: str, learned: bool) -> None:
    """Where slots are averages, the map alone makes them; else it says that it cannot."""
    given = tokens()
    module = reducer(name, learned=learned)
    merged, who = module(given)
    if spec_of(name).training == "required":
        with pytest.raises(sttm.SttmError, match="no averages of the tokens"):
            who.merge(given.x_BTSC.flatten(1, 2))
        return
    torch.testing.assert_close(who.merge(given.position_BTS3.double().flatten(1, 2)), who.position)
    total = torch.zeros_like(who.size).scatter_add(1, who.assignment.clamp(min=0), who.weight)
    torch.testing.assert_close(total, torch.ones_like(total))
    averages = who.merge(given.x_BTSC.flatten(1, 2))
    without, _ = module(given, moved=False)
    torch.testing.assert_close(averages, without.x_BTSC.flatten(1, 2))
    if module.motion is None:
        assert torch.equal(merged.x_BTSC, without.x_BTSC)


@every_mode
def test_gradients_reach_every_parameter_and_what_is_kept(name: str, learned: bool) -> None:
    module, given = reducer(name, learned=learned).train(), tokens()
    given.x_BTSC.requires_grad_()
    merged, who = module(given)
    merged.x_BTSC.square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert given.x_BTSC.grad is not None
    kept = who.assignment >= 0
    if name in DROPPING:  # of a run, one token is kept
        kept = torch.zeros_like(kept).scatter(1, who.meta, True)
    # The motion feature looks for an object among all tokens, dropped ones too.
    read = torch.ones_like(kept) if module.motion is not None else kept
    assert torch.equal(given.x_BTSC.grad.any(-1).flatten(1), read)
    assert not merged.size_BTS.requires_grad and not merged.position_BTS3.requires_grad


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 3e4])
def test_finite_at_any_scale(name: str, learned: bool, dtype: torch.dtype, scale: float) -> None:
    x = torch.randn(1, T, S, C, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[..., 0] = 2.0  # a channel of massive activations
    merged, _ = reducer(name, learned=learned).to(dtype)(cued(Tokens.of_grid((x * scale).to(dtype), H, W)))
    assert merged.x_BTSC.dtype == dtype and merged.x_BTSC.isfinite().all()
    assert (merged.size_BTS > 0).all() and merged.position_BTS3.abs().max() <= 1 + 1e-6


@every_method
def test_one_token_a_window_can_be_left(name: str) -> None:
    x = torch.randn(1, T, 1, C, dtype=torch.float64)
    module = METHODS[name](C, 2, 1, frames_in=T, learned=spec_of(name).training == "required").double().eval()
    assert module(cued(Tokens.of_grid(x, 1, 1)))[0].x_BTSC.isfinite().all()
    single = METHODS[name](C, T, 1, frames_in=T, learned=spec_of(name).training == "required").double().eval()
    torch.testing.assert_close(single(cued(Tokens.of_grid(x, 1, 1)))[0].x_BTSC, x)


@every_mode
def test_traces_as_one_graph(name: str, learned: bool) -> None:
    module, given = reducer(name, learned=learned), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")(given)
    torch.testing.assert_close(compiled[0].x_BTSC, module(given)[0].x_BTSC)
    assert torch.equal(compiled[1].assignment, module(given)[1].assignment)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tome", dict(frames=3, frames_in=8), "divide"),
        ("sttm", dict(frames=0), "frames=0"),
        ("tome", dict(tokens=0), "tokens=0"),
        ("pool", dict(tokens_in=0), "tokens_in=0"),
        ("dpcknn", dict(frames_in=4, tokens_in=1), "4 x 1 tokens cannot become 2 x 4"),
        ("frames", dict(frames_in=4, tokens_in=5), "give tokens=5"),
        ("sttm", dict(selector="magic"), "novelty or stride"),
        ("pool", dict(selector="stride"), "leave selector out"),
        ("random", dict(selector="novelty"), "choose stride, or leave selector out"),
        ("patchmerger", {}, "learned=True"),
        ("tokenlearner", {}, "learned=True"),
    ],
)
def test_impossible_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sttm.SttmError, match=message):
        METHODS[name](**(dict(dim=8, frames=2, tokens=4) | arguments))


@every_method
@pytest.mark.parametrize("tokens_in", [S, None])
def test_another_grid_is_refused(name: str, tokens_in: int | None) -> None:
    module = reducer(name, tokens_in=tokens_in)
    wrong = [Tokens.of_grid(torch.zeros(1, T + 2, S, C), H, W), Tokens.of_grid(torch.zeros(1, T, S, C + 1), H, W)]
    wrong.append(Tokens.of_grid(torch.zeros(1, T, 3, C), 1, 3))
    if module.tokens_in is not None:
        wrong.append(Tokens.of_grid(torch.zeros(1, T, S + W, C), H + 1, W))
    for given in wrong:
        with pytest.raises(sttm.SttmError, match="clip_shape"):
            module(given)


def test_every_method_has_a_name_and_an_unknown_one_gets_the_list() -> None:
    assert [method_named(name).name for name in METHODS] == list(METHODS)
    with pytest.raises(sttm.SttmError, match=r"'nonsense'; choose one of .*sttm"):
        spec_of("nonsense")


# --- modules in the world of torch ----------------------------------------------------------------------------------


def columns(given: Tokens) -> tuple[Tensor, ...]:
    """Return what is in `given`, as tensors with the clips first."""
    assert given.prefix_BPC is not None and given.cue_BTSD is not None
    return given.x_BTSC, given.size_BTS, given.position_BTS3, given.prefix_BPC, given.cue_BTSD


class Twice(nn.Module):
    """Two reducers in turn, on tensors; the second gets the centroids that the first leaves."""

    def __init__(self, name: str, learned: bool) -> None:
        super().__init__()
        self.first = reducer(name, 2, 7, learned=learned)
        frames, slots = (2, S) if spec_of(name).whole_frames else (1, 5)
        sizes = dict(frames_in=self.first.frames, tokens_in=self.first.tokens)
        self.second = METHODS[name](C, frames, slots, **sizes, learned=learned).double().eval()

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        x, size, position, prefix, cue = given
        merged, one = self.first(Tokens(x, size, position, prefix, cue))
        merged, two = self.second(replace(merged, cue_BTSD=merged.x_BTSC.abs()))
        assert one is not None and two is not None
        return merged.x_BTSC, merged.size_BTS, merged.position_BTS3, one.assignment, two.assignment


@every_mode
def test_vmap_over_clips_is_a_loop(name: str, learned: bool) -> None:
    module, clips = Twice(name, learned), [columns(tokens(seed)) for seed in range(3)]
    batched = torch.func.vmap(module)(*(torch.stack(column) for column in zip(*clips, strict=True)))
    one_by_one = zip(*(module(*clip) for clip in clips), strict=True)
    for together, each in zip(batched, one_by_one, strict=True):
        torch.testing.assert_close(together, torch.stack(each))

    def from_pixels(x: Tensor) -> Tensor:  # sizes and positions are then the same for all, and not batched
        return module.first(replace(Tokens.of_grid(x, H, W), cue_BTSD=x.abs()))[0].x_BTSC

    x = torch.stack([clip[0] for clip in clips])
    torch.testing.assert_close(torch.func.vmap(from_pixels)(x), torch.stack([from_pixels(one) for one in x]))


@every_mode
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_holds_for_other_clips_and_batches(name: str, learned: bool) -> None:
    module = Twice(name, learned)
    traced = torch.jit.trace(module, columns(tokens()), check_trace=False)
    assert "rshift" not in str(traced.inlined_graph)
    more = tuple(torch.cat(pair) for pair in zip(columns(tokens(1)), columns(tokens(2)), strict=True))
    for ours, expected in zip(traced(*more), module(*more), strict=True):
        torch.testing.assert_close(ours, expected)


@every_mode
def test_exports_with_any_number_of_clips_and_operators_that_onnx_has(name: str, learned: bool) -> None:
    module = Twice(name, learned)
    clips = torch.export.Dim("clips", min=1, max=64)
    program = torch.export.export(module, columns(tokens()), dynamic_shapes={"given": ({0: clips},) * 5})
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in used if "rshift" in name or "scatter_reduce" in name or "autocast" in name]
    more = tuple(torch.cat(pair) for pair in zip(columns(tokens(1)), columns(tokens(2)), strict=True))
    for ours, expected in zip(program.module()(*more), module(*more), strict=True):
        torch.testing.assert_close(ours, expected)


@every_mode
def test_known_tokens_in_changes_nothing(name: str, learned: bool) -> None:
    given = tokens()
    known, unknown = (reducer(name, learned=learned, tokens_in=n)(given) for n in (S, None))
    assert torch.equal(known[0].x_BTSC, unknown[0].x_BTSC) and torch.equal(known[1].assignment, unknown[1].assignment)
    assert known[1].grid == unknown[1].grid == ((T, S), known[0].size_BTS.shape[1:])


@every_mode
def test_every_layer_is_called_as_a_module(name: str, learned: bool) -> None:
    module, called = reducer(name, learned=learned), []
    layers = {key: layer for key, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    assert bool(layers) == learned
    for key, layer in layers.items():
        layer.register_forward_hook(lambda *_, key=key: called.append(key))
    module(tokens())
    assert set(called) == set(layers)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name, learned in MODES if learned])
def test_learned_parts_can_be_quantized_and_offloaded(name: str) -> None:
    given, module = tokens(dtype=torch.float32), reducer(name, learned=True).float()
    expected = module(given)[0].x_BTSC
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(layer) is nn.Linear for layer in quantized.modules())
    # As a share of the signal: a map that reads steps of 1/128 shows the rounding of similarities in single values.
    # Random drop with the motion feature, of a few tokens at size one, comes to 5.8 %.
    bound = 0.06 if spec_of(name).training == "never" else 0.05
    assert (quantized(given)[0].x_BTSC - expected).norm() < bound * expected.norm()
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(copy.deepcopy(module), execution_device=torch.device("cpu"))
    assert torch.equal(offloaded(given)[0].x_BTSC, expected)


@every_mode
def test_a_state_dict_says_its_grid_and_fits_no_other(name: str, learned: bool) -> None:
    module, same = reducer(name, learned=learned), reducer(name, learned=learned)
    state = module.state_dict()
    assert state["grid"].tolist() == [T, S, module.frames, module.tokens]
    assert state.keys() == {"grid", *dict(module.named_parameters())}
    same.load_state_dict(state)
    given = tokens()
    assert torch.equal(same(given)[0].x_BTSC, module(given)[0].x_BTSC)


@every_mode
def test_the_grid_of_another_merger_is_refused(name: str, learned: bool) -> None:
    whole, module = spec_of(name).whole_frames, reducer(name, learned=learned)
    sizes: dict[str, Any] = dict(frames_in=T, tokens_in=S, learned=learned)
    other = METHODS[name](C, 2, S if whole else 6, **sizes)
    with pytest.raises(RuntimeError, match=rf"size mismatch for grid: .* for {T} x {S} -> 2 x .* -> {module.frames} x"):
        module.load_state_dict(other.state_dict())
    assert module.grid.tolist() == [T, S, module.frames, module.tokens]
    if not whole:
        # A merger that was made without tokens_in agrees with any, and each keeps what it knows.
        unknown = reducer(name, learned=learned, tokens_in=None)
        module.load_state_dict(unknown.state_dict())
        unknown.load_state_dict(module.state_dict())
        assert (int(module.grid[1]), int(unknown.grid[1])) == (S, -1)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({key: value for key, value in module.state_dict().items() if key != "grid"})


@every_mode
def test_copies_and_pickles_answer_alike(name: str, learned: bool) -> None:
    module, given = reducer(name, learned=learned), tokens()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(given)[0].x_BTSC, module(given)[0].x_BTSC)
