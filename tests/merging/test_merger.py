"""The merger by itself: the properties that the method promises, and parity with a version in plain loops."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sttm.errors import SttmError
from sttm.merging.merger import TokenMerger
from sttm.merging.motion import GAIN, Motion, motion_input
from sttm.merging.ops import adds_in_order
from sttm.merging.reduced import Reduced
from sttm.merging.tokens import Tokens, grid_positions
from tests.merging.helpers import cell

MODES = [
    dict(learned=False, selector="stride"),
    dict(learned=False, selector="novelty"),
    dict(learned=True, selector="stride"),
    dict(learned=True, selector="novelty"),
]
modes = pytest.mark.parametrize(
    "mode", MODES, ids=lambda m: f"{'learned' if m['learned'] else 'as-is'}-{m['selector']}"
)
B, T, H, W, C, F, M = 2, 4, 4, 5, 12, 2, 6


class OperationCount(TorchDispatchMode):
    """Count the operations that run inside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def merger(mode: dict, *, stirred: bool = True, **changes) -> TokenMerger:
    sizes = dict(dim=C, frames=F, tokens=M, frames_in=T) | changes
    torch.manual_seed(0)
    module = TokenMerger(**sizes, **mode).double().eval()
    if stirred:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def tokens(seed: int = 0, dtype: torch.dtype = torch.float64, sized: bool = True) -> Tokens:
    """Tokens that an earlier merger has left: uneven sizes, positions off the grid."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, H * W, C, generator=make, dtype=torch.float64).to(dtype)
    plain = Tokens.of_grid(x, H, W, prefix_BPC=torch.randn(B, 1, C, generator=make))
    if not sized:
        return plain
    size = torch.randint(1, 5, (B, T, H * W), generator=make).double()
    shift = 0.05 * torch.randn(B, T, H * W, 3, generator=make, dtype=torch.float64)
    return Tokens(x, size, (plain.position_BTS3 + shift).clamp(-1, 1), plain.prefix_BPC)


# --- an independent version: one token at a time ----------------------------------------------------------------------


def naive(module: TokenMerger, given_: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slots, sizes, positions and assignment, in loops, from the page that describes the method."""
    weights = {name: value.detach() for name, value in module.named_parameters()}
    x, size, position = given_.x_BTSC, given_.size_BTS, given_.position_BTS3
    S, window = H * W, T // F
    slots, sizes = torch.zeros(B, F, M, C).double(), torch.zeros(B, F, M).double()
    places, assignment = torch.zeros(B, F, M, 3).double(), torch.zeros(B, T * S).long()

    def norm(v: Tensor) -> Tensor:
        return (v - v.mean()) / torch.sqrt(v.var(unbiased=False) + 1e-5)

    for b in range(B):
        features: dict[tuple[int, int], Tensor] = {}
        for f in range(F):
            members = [(t, s) for t in range(f * window, (f + 1) * window) for s in range(S)]
            feature = {m: norm(x[b, m[0], m[1]]) for m in members}
            middle = torch.stack(list(feature.values())).mean(0)
            features |= {m: v - middle for m, v in feature.items()}
        for f in range(F):
            members = [(t, s) for t in range(f * window, (f + 1) * window) for s in range(S)]
            metas = naive_metas(module, weights, members, features, position[b])
            held: list[list[tuple[int, int]]] = [[] for _ in metas]
            for m in members:
                cosines = [float(unit(features[m]) @ unit(features[k])) for k in metas]
                slot = metas.index(m) if m in metas else cosines.index(max(cosines))
                held[slot].append(m)
                assignment[b, m[0] * S + m[1]] = f * M + slot
            for k, mine in enumerate(held):
                mass = torch.stack([size[b][m] for m in mine]).sum()
                slots[b, f, k] = sum(size[b][m] * x[b][m] for m in mine) / mass
                places[b, f, k] = sum(size[b][m] * position[b][m] for m in mine) / mass
                sizes[b, f, k] = mass
                if module.learned:
                    path = naive_path(weights, features, features[metas[k]], position[b], places[b, f, k])
                    felt = naive_motion(path, mass, size[b].sum() / (F * M))
                    slots[b, f, k] += weights["motion.map.weight"] @ felt + weights["motion.map.bias"]
    return slots, sizes, places, assignment


def naive_path(weights, features, meta: Tensor, position: Tensor, centroid: Tensor) -> list[tuple[Tensor, float]]:
    """In every frame, where what resembles the meta token is, on average, seen from the slot; and how sure that is."""
    key, path = unit(weights["motion.similarity.weight"] @ meta), []
    for t in range(T):
        alike = [unit(weights["motion.similarity.weight"] @ features[t, s]) @ key for s in range(H * W)]
        likeness = (torch.stack(alike) / math.exp(weights["motion.log_tau"])).softmax(0)
        cosine = max(0.0, sum(float(a * c) for a, c in zip(likeness, alike, strict=True)))
        there = sum(a * position[t, s, 1:] for s, a in enumerate(likeness))
        variance = sum(float(a * (position[t, s, 1:] - there).square().sum()) for s, a in enumerate(likeness))
        path.append((there - centroid[1:], 0.1 / (0.1 + variance) * cosine**2))
    return path


def naive_motion(path: list[tuple[Tensor, float]], mass: Tensor, mean_mass: Tensor) -> Tensor:
    """16 times: mean point in units of 1/16, steps in 1/128 of half a picture, compressed; the log relative size."""
    total = sum(sure for _, sure in path)
    mean = torch.stack([sure * point for point, sure in path]).sum(0) / max(total, 1e-6 * len(path))
    moved = [compressed(16 * mean) * total / len(path)]
    for (here, sure), (there, surer) in itertools.pairwise(path):
        moved.append(compressed(128 * (there - here)) * sure * surer)
    return 16 * torch.cat([*moved, (mass / mean_mass).log()[None]])


def compressed(v: Tensor) -> Tensor:
    return torch.log(v + torch.sqrt(v**2 + 1))


def unit(v: Tensor) -> Tensor:
    return v / max(float(v.norm()), 1e-12)


def naive_metas(module, weights, members, feature, position) -> list[tuple[int, int]]:
    """Meta tokens of one window, by the rule of the selector's name."""

    def curve(member: tuple[int, int]) -> tuple:
        t, y, x = (cell(v) for v in position[member])
        bits = "".join(f"{(y >> b) & 1}{(x >> b) & 1}" for b in reversed(range(6)))
        return t, int(bits, 2), float(position[member][1]) * 2 + float(position[member][2])

    ordered = sorted(members, key=curve)
    if module.selector_name == "stride":
        return [ordered[((2 * i + 1) * len(ordered)) // (2 * M)] for i in range(M)]
    length = (len(ordered) - 1).bit_length()

    def novelty(place: int) -> float:
        apart = [float((feature[ordered[place]] - feature[before]).square().mean()) for before in ordered[:place]]
        turn = sum((place >> bit & 1) / 2 ** (bit + 1) for bit in range(length))
        return min(apart, default=math.inf) - 1e-5 * turn

    return [ordered[place] for place in sorted(range(len(ordered)), key=lambda place: -novelty(place))[:M]]


@modes
@pytest.mark.parametrize("seed", [0, 1])
def test_parity_with_plain_loops(mode: dict, seed: int) -> None:
    module, given_ = merger(mode), tokens(seed)
    merged, who = module(given_)
    slots, sizes, places, assignment = naive(module, given_)
    torch.testing.assert_close(merged.x_BTSC, slots, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged.size_BTS, sizes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged.position_BTS3, places, rtol=1e-9, atol=1e-9)
    assert torch.equal(who.assignment, assignment)


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    windows=st.integers(1, 3), window=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5),
    kept=st.floats(0, 1), mode=st.sampled_from(MODES), seed=st.integers(0, 999),
)  # fmt: skip
def test_sizes_sum_to_the_tokens_that_came_in(windows, window, height, width, kept, mode, seed) -> None:
    frames, length = windows * window, window * height * width
    slots = max(1, round(kept * length))
    module = merger(mode, frames=windows, tokens=slots, frames_in=frames)
    x = torch.randn(2, frames, height * width, C, generator=torch.Generator().manual_seed(seed)).double()
    merged, who = module(Tokens.of_grid(x, height, width))
    n = torch.full((2,), float(frames * height * width)).double()
    torch.testing.assert_close(merged.size_BTS.double().sum((1, 2)), n)
    assert merged.x_BTSC.shape == (2, windows, slots, C) and merged.x_BTSC.isfinite().all()
    assert (merged.size_BTS > 0).all()
    # Metas are tokens of their own window, all different; every slot holds at least its own.
    assert all(len(set(row.tolist())) == windows * slots for row in who.meta)
    assert torch.equal(who.assignment.gather(1, who.meta), torch.arange(windows * slots).expand(2, -1))
    counts = torch.stack([torch.bincount(row, minlength=windows * slots) for row in who.assignment])
    torch.testing.assert_close(who.size.double(), counts.double())


@modes
def test_averages_as_products_are_the_sums_by_index(mode: dict) -> None:
    """On a GPU and in compiled code, where sums by index have no fixed order, slots are products of matrices."""
    module, stored = merger(mode, tokens_in=H * W), tokens()
    by_index, who = module(stored)
    calls: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(graph)
        return graph

    torch._dynamo.reset()
    by_product, who_by_product = torch.compile(module, backend=kept)(stored)
    names = {node.name for graph in calls for node in graph.graph.nodes}
    assert calls and not any("index_add" in name for name in names), names
    torch.testing.assert_close(vars(by_product), vars(by_index))
    torch.testing.assert_close(who_by_product.weight, who.weight)
    assert torch.equal(who_by_product.assignment, who.assignment)
    with torch.device("meta"):
        assert not adds_in_order(torch.empty(1))
    assert adds_in_order(torch.empty(1))


@pytest.mark.parametrize("selector", ["stride", "novelty"])
def test_as_is_keeps_a_constant_and_the_weighted_mean(selector: str) -> None:
    module, given_ = merger(dict(learned=False, selector=selector)), tokens()
    merged, _ = module(given_)
    before = (given_.size_BTS[..., None] * given_.x_BTSC).sum((1, 2))
    torch.testing.assert_close((merged.size_BTS[..., None] * merged.x_BTSC).sum((1, 2)), before)
    middle = (given_.size_BTS[..., None] * given_.position_BTS3).sum((1, 2))
    torch.testing.assert_close((merged.size_BTS[..., None] * merged.position_BTS3).sum((1, 2)), middle)
    constant = Tokens(torch.full_like(given_.x_BTSC, 3.25), given_.size_BTS, given_.position_BTS3)
    torch.testing.assert_close(module(constant)[0].x_BTSC, torch.full((B, F, M, C), 3.25).double())


@pytest.mark.parametrize("selector", ["stride", "novelty"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_a_learned_merger_starts_as_the_one_off_the_shelf_bit_for_bit(
    selector: str, dtype: torch.dtype, training: bool
) -> None:
    given_ = tokens(dtype=dtype)
    one, other = (
        merger(dict(learned=learned, selector=selector), stirred=False).to(dtype).train(training)(given_)[0]
        for learned in (True, False)
    )
    assert torch.equal(one.x_BTSC, other.x_BTSC) and torch.equal(one.position_BTS3, other.position_BTS3)
    assert torch.equal(one.size_BTS, other.size_BTS)


@modes
def test_permuting_clips_permutes_results(mode: dict) -> None:
    module, given_ = merger(mode), tokens()
    flipped = Tokens(given_.x_BTSC.flip(0), given_.size_BTS.flip(0), given_.position_BTS3.flip(0))
    torch.testing.assert_close(module(flipped)[0].x_BTSC, module(given_)[0].x_BTSC.flip(0))


@modes
def test_the_order_in_which_tokens_are_stored_changes_nothing(mode: dict) -> None:
    module, given_ = merger(mode), tokens()
    shuffled = [torch.randperm(H * W, generator=torch.Generator().manual_seed(t)) for t in range(T)]

    def shuffle(a: Tensor) -> Tensor:
        return torch.stack([a[:, t, order] for t, order in enumerate(shuffled)], dim=1)

    there = module(Tokens(shuffle(given_.x_BTSC), shuffle(given_.size_BTS), shuffle(given_.position_BTS3)))[0]
    here = module(given_)[0]

    def rows(merged: Tokens) -> Tensor:
        """The slots of each window, sorted by what they hold."""
        everything = torch.cat((merged.x_BTSC, merged.size_BTS[..., None], merged.position_BTS3), dim=-1)
        order = everything[..., 0].argsort(-1)[..., None].expand_as(everything)
        return everything.gather(2, order)

    torch.testing.assert_close(rows(there), rows(here))


@modes
def test_prefix_tokens_pass_untouched(mode: dict) -> None:
    given_ = tokens()
    assert merger(mode)(given_)[0].prefix_BPC is given_.prefix_BPC


@pytest.mark.parametrize("dy, dx", [(1, 0), (0, 1), (1, 1), (-1, 1)])
def test_a_moving_patch_leaves_a_path_of_its_slope(dy: int, dx: int) -> None:
    side, frames = 9, 4
    x = torch.zeros(1, frames, side * side, C).double()
    x[..., 0], x[..., 1] = 1.0, -1.0
    start = (4 if dy == 0 else 1 if dy > 0 else 7), (4 if dx == 0 else 1)
    for t in range(frames):
        x[0, t, (start[0] + dy * t) * side + start[1] + dx * t] = torch.linspace(-3, 3, C).double()
    module = merger(dict(learned=True, selector="stride"), frames=1, tokens=frames * side * side, frames_in=frames)
    assert module.motion is not None
    with torch.no_grad():
        module.motion.log_tau.fill_(-5)
    _, who = module(Tokens.of_grid(x, side, side))
    bright = start[0] * side + start[1]
    slot = who.meta[0].tolist().index(bright)
    step = who.trajectory[0, slot].diff(dim=0) / (2 / (side - 1))
    expected = torch.tensor([[dy, dx]]).double().expand(frames - 1, 2)
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(who.trajectory[0, slot, 0], torch.zeros(2).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("selector", ["stride", "novelty"])
def test_gradients_reach_every_parameter_and_the_input(selector: str) -> None:
    module = merger(dict(learned=True, selector=selector)).train()
    given_ = tokens()
    given_.x_BTSC.requires_grad_()
    merged = module(given_)[0]
    assert not merged.size_BTS.requires_grad  # bookkeeping: no gradient goes through it
    merged.x_BTSC.square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert given_.x_BTSC.grad is not None and given_.x_BTSC.grad.any(-1).all()


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 3e4])
def test_finite_at_any_scale(mode: dict, dtype: torch.dtype, scale: float) -> None:
    x = torch.randn(1, T, H * W, C, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[..., 0] = 2.0  # a channel of massive activations
    merged, _ = merger(mode).to(dtype)(Tokens.of_grid((x * scale).to(dtype), H, W))
    assert merged.x_BTSC.dtype == dtype and merged.x_BTSC.isfinite().all() and merged.size_BTS.isfinite().all()


def test_what_stands_still_is_new_once_and_what_moves_keeps_its_tokens() -> None:
    """A still clip in which one bright patch wanders: the second frame of a window keeps the patch before all else."""
    still = torch.randn(H * W, C, generator=torch.Generator().manual_seed(3)).double()
    x = still.expand(1, 2, -1, -1).clone()
    x[0, 0, 7], x[0, 1, 12] = torch.linspace(-3, 3, C), torch.linspace(3, -3, C)
    module = merger(dict(learned=False, selector="novelty"), frames=1, tokens=H * W + 2, frames_in=2)
    _, who = module(Tokens.of_grid(x, H, W))
    assert set(range(H * W)) | {H * W + 12, H * W + 7} == set(who.meta[0].tolist())


def test_equally_new_tokens_are_kept_on_a_regular_stride() -> None:
    x = torch.full((1, 2, 16, C), 0.5).double()
    module = merger(dict(learned=False, selector="novelty"), frames=1, tokens=8, frames_in=2)
    _, who = module(Tokens.of_grid(x, 4, 4))
    frames = torch.div(who.meta[0], 16, rounding_mode="floor")
    assert frames.bincount().tolist() == [4, 4]
    quarters = torch.div(who.meta[0] % 16, 8, rounding_mode="floor") * 2 + (who.meta[0] % 4 > 1)
    assert quarters.bincount().tolist() == [2, 2, 2, 2]


def test_off_the_shelf_tells_objects_apart() -> None:
    """Three flat regions, told by their features: no slot mixes two of them."""
    region = torch.arange(H * W) % 3
    looks = torch.randn(3, C, generator=torch.Generator().manual_seed(1)).double()
    x = looks[region].expand(B, T, -1, -1).clone()
    _, who = merger(dict(learned=False, selector="novelty"))(Tokens.of_grid(x, H, W))
    for b in range(B):
        for slot in range(F * M):
            members = (who.assignment[b] == slot).nonzero().flatten() % (H * W)
            assert len(set(region[members].tolist())) == 1


def test_motion_input_is_the_mean_place_the_steps_and_the_relative_size() -> None:
    """A path that stands still has no steps; one of steady speed has the same step in every frame."""
    frames = torch.arange(T).double()[:, None]
    still, steady = torch.full((T, 2), 0.25).double(), frames * torch.tensor([0.125, -0.0625]).double()
    path = torch.stack((still, steady)).expand(2, 1, 2, T, 2)
    size = torch.tensor([[[1.0, 3.0]], [[4.0, 4.0]]]).double()
    sure = torch.ones(2, 1, 2, T, 1).double()
    motion = motion_input(path, sure, size)
    middle = (T - 1) / 2
    assert motion.shape == (2, 1, 2, 2 * T + 1)
    expected = [
        [math.asinh(v) for v in (4, 4, *[0, 0] * (T - 1))] + [math.log(0.5)],
        [math.asinh(v) for v in (2 * middle, -middle, *[16, -8] * (T - 1))] + [math.log(1.5)],
    ]
    torch.testing.assert_close(motion[0, 0], GAIN * torch.tensor(expected).double())
    assert torch.equal(motion[1, ..., -1], torch.zeros(1, 2).double())
    # No statistics: a clip gives the same in any batch, in training and in testing.
    assert torch.equal(motion_input(path[:1], sure[:1], size[:1]), motion[:1])


def test_motion_input_counts_by_certainty() -> None:
    """A step counts by both its points, the mean place by all; an object that is found nowhere has no motion."""
    path = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]).double().expand(1, 1, 1, 4, 2)
    sure = torch.tensor([1.0, 1.0, 0.0, 0.5]).double().reshape(1, 1, 1, 4, 1)
    size = torch.ones(1, 1, 1).double()
    assert torch.equal(motion_input(path, sure, size), torch.zeros(1, 1, 1, 9).double())
    assert torch.equal(motion_input(path, torch.zeros_like(sure), size), torch.zeros(1, 1, 1, 9).double())
    half = motion_input(path, torch.full_like(sure, 0.5), size)
    torch.testing.assert_close(half[..., 2:-1], motion_input(path, torch.ones_like(sure), size)[..., 2:-1] / 4)


def test_a_point_on_noise_is_uncertain() -> None:
    """On a ground of noise some token resembles an object a little in every frame; a target that stays is found."""
    make, wide, ground = torch.Generator().manual_seed(0), 128, T // F * H * W
    motion = Motion(wide, T).double()
    noise = torch.randn(1, F, ground, wide, generator=make).double()
    target = 2 * torch.randn(wide, generator=make).double()
    x = torch.where((torch.arange(ground) % (H * W) == 0)[:, None], target, noise)
    position = torch.rand(1, F, ground, 3, generator=make).double()
    meta = torch.tensor([0, 1]).expand(1, F, 2)
    reduced = Reduced(x[:, :, :2], torch.ones(1, F, 2).double(), position[:, :, :2], meta_BWK=meta)
    _, certainty = motion.follow(x, position, reduced)
    certainty = certainty.detach()[0, 0, :, T // F :]  # of the first window's two, in the frames of the others
    assert certainty[0].min() > 4 * certainty[1].max()
    assert certainty.min() >= 0 and certainty.max() <= 1


def test_motion_input_is_well_conditioned() -> None:
    """Of paths that stay around a point of their own, as real ones do, AdamW learns no direction far faster."""
    make = torch.Generator().manual_seed(0)
    point = torch.randn(64, 1, 16, 1, 2, generator=make).double() / 16
    walk = torch.randn(64, 1, 16, 8, 2, generator=make).double().cumsum(-2) / 128
    path, size, sure = point + walk, torch.ones(64, 1, 16).double(), torch.ones(64, 1, 16, 8, 1).double()

    def condition(inputs: Tensor) -> float:
        return float(torch.linalg.cond(inputs.flatten(0, 2)) ** 2)

    assert condition(path.flatten(-2)) > 500
    assert condition(motion_input(path, sure, size)[..., :-1]) < 50


@modes
def test_a_merger_of_a_known_grid_does_the_same_with_fewer_operations(mode: dict) -> None:
    sizes: dict[str, Any] = dict(dim=C, frames=F, tokens=M, frames_in=T, tokens_in=H * W)
    torch.manual_seed(0)
    known = TokenMerger(**sizes, **mode, grid_in=(H, W))
    other = TokenMerger(**sizes, **mode)
    other.load_state_dict(known.state_dict())
    given_ = tokens(dtype=torch.float32, sized=False)
    with OperationCount() as few:
        merged, who = known(given_)
    with OperationCount() as many:
        expected, map_ = other(given_)
    assert torch.equal(merged.x_BTSC, expected.x_BTSC) and torch.equal(merged.position_BTS3, expected.position_BTS3)
    assert torch.equal(who.assignment, map_.assignment)
    assert few.count < many.count - 15 or mode["selector"] == "stride"


def test_known_positions_keep_their_precision_and_follow_the_module() -> None:
    known = TokenMerger(C, F, M, frames_in=T, tokens_in=H * W, grid_in=(H, W))
    exact = grid_positions(T, H, W)
    for module in (known.bfloat16(), copy.deepcopy(known)):
        assert module.positions is not None and torch.equal(module.positions(), exact)
    known.to("meta")
    assert known.positions is not None and known.positions().is_meta


def test_tokens_that_something_has_merged_are_no_known_grid() -> None:
    known = TokenMerger(C, F, M, frames_in=T, tokens_in=H * W, grid_in=(H, W))
    with pytest.raises(SttmError, match=r"takes tokens of a 4 x 5 grid that nothing has merged; make them by"):
        known(tokens(dtype=torch.float32))
