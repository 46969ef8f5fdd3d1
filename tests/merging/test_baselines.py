"""The baselines: each against a version in plain loops from its paper, and all against what the merger promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sttm
from sttm.backbones import backbone_of
from sttm.benchmark.speed import SHAPES
from sttm.merging import METHODS, spec_of
from sttm.merging.baselines.simple import Baseline
from sttm.merging.tokens import Tokens
from sttm.patching.api import install, plan_of
from sttm.patching.plan import MergerPlan, Plan
from sttm.visual.pictures import slots
from tests.helpers import FAMILIES, logits, pixels

BASELINES = [name for name in METHODS if name != "sttm"]
LEARNED = {"patchmerger", "tokenlearner"}
MERGING = {"pool", "tome", "dpcknn", "patchmerger", "tokenlearner"}
DROPPING = {"random", "frames", "sta"}
B, T, H, W, C = 2, 4, 4, 5, 12
S = H * W

every_rival = pytest.mark.parametrize("name", BASELINES)


def baseline(name: str, frames: int = 2, slots: int = 7, **changes: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = dict(frames_in=T, learned=name in LEARNED) | changes
    frames, slots = (3, S) if name == "frames" else (frames, slots)
    return METHODS[name](C, frames, slots, **options).double().eval()


def tokens(seed: int = 0, dtype: torch.dtype = torch.float64, prefix: bool = True) -> Tokens:
    """Tokens of uneven sizes, as an earlier merger leaves them."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, S, C, generator=make, dtype=torch.float64).to(dtype)
    plain = Tokens.of_grid(x, H, W, torch.randn(B, 1, C, generator=make).to(dtype) if prefix else None)
    size = torch.randint(1, 5, (B, T, S), generator=make).double()
    return Tokens(x, size, plain.position_BTS3, plain.prefix_BPC)


# --- independent versions: for one clip, windows of tokens -> for each window its slots, as {token: weight}, and sizes

Slots = list[tuple[dict[int, float], float]]
Clip = list[list[tuple[list[float], float, list[float]]]]  # window, token: (features, size, position)


def unit(v: list[float]) -> list[float]:
    """Mean 0, variance 1, as a layer norm."""
    mean = sum(v) / len(v)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in v) / len(v) + 1e-5)
    return [(a - mean) / deviation for a in v]


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


def alone(indices: list[int]) -> Slots:
    return [({i: 1.0}, 1.0) for i in indices]


def by_size(window: Any, groups: list[list[int]]) -> Slots:
    masses = [sum(window[i][1] for i in group) for group in groups]
    return [({i: window[i][1] / mass for i in g}, mass) for g, mass in zip(groups, masses, strict=True)]


def curve(position: list[float]) -> int:
    y, x = (round((v + 1) / 2 * 63) for v in position[1:])
    return int("".join(f"{(y >> b) & 1}{(x >> b) & 1}" for b in reversed(range(6))), 2)


def naive_random(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        order = sorted(range(len(window)), key=lambda i: (window[i][2][0], curve(window[i][2])))
        M = module.tokens
        found.append(alone(sorted(order[((2 * i + 1) * len(order)) // (2 * M)] for i in range(M))))
    return found


def naive_frames(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    chosen = [((2 * i + 1) * T) // (2 * module.frames) for i in range(module.frames)]
    return [alone([t * S + s for t in chosen for s in range(S)])]


def naive_pool(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        order = sorted(range(len(window)), key=lambda i: (curve(window[i][2]), window[i][2][0]))
        groups: list[list[int]] = [[] for _ in range(module.tokens)]
        for rank, i in enumerate(order):
            groups[rank * module.tokens // len(order)].append(i)
        found.append(by_size(window, groups))
    return found


def naive_tome(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        # A token: (features, size, whom it is made of).
        left = [(list(x), size, [i]) for i, (x, size, _) in enumerate(window)]
        while len(left) > module.tokens:
            merges = min(len(left) - module.tokens, len(left) // 2)
            edges = []
            for a in range(0, len(left), 2):
                scores = {b: cosine(unit(left[a][0]), unit(left[b][0])) for b in range(1, len(left), 2)}
                partner = max(scores, key=lambda b: scores[b])
                edges.append((scores[partner], a, partner))
            gone = sorted(edges, reverse=True)[:merges]
            for b in range(1, len(left), 2):
                joined = [left[b]] + [left[a] for _, a, partner in gone if partner == b]
                size = sum(j[1] for j in joined)
                mean = [sum(j[1] * j[0][c] for j in joined) / size for c in range(C)]
                left[b] = (mean, size, [i for j in joined for i in j[2]])
            left = [token for i, token in enumerate(left) if i not in [a for _, a, _ in gone]]
        found.append(by_size(window, [members for _, _, members in left]))
    return found


def naive_dpcknn(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        x, n = [unit(v) for v, _, _ in window], range(len(window))
        apart = [[sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)) / C for j in n] for i in n]
        density = [math.exp(-sum(sorted(apart[i][j] for j in n if j != i)[:5]) / 5) for i in n]
        score = []
        for i in n:
            denser = [math.sqrt(apart[i][j]) for j in n if density[j] > density[i]]
            score.append(density[i] * (min(denser) if denser else max(math.sqrt(apart[i][j]) for j in n)))
        centres = sorted(n, key=lambda i: -score[i])[: module.tokens]
        groups: list[list[int]] = [[] for _ in centres]
        for i in n:
            groups[min(range(len(centres)), key=lambda k: apart[i][centres[k]])].append(i)
        found.append(by_size(window, groups))
    return found


def naive_evit(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found = []
    for window in clip:
        x = [unit(v) for v, _, _ in window]
        query = [sum(v[c] for v in x) / len(x) for c in range(C)] if prefix is None else unit(prefix)
        attention = softmax([dot(query, v) / math.sqrt(C) for v in x])
        stay = sorted(sorted(range(len(x)), key=lambda i: -attention[i])[: module.tokens - 1])
        rest = {i: attention[i] for i in range(len(x)) if i not in stay}
        fused = {i: a / sum(rest.values()) for i, a in rest.items()}
        found.append([*alone(stay), (fused, 1.0)])
    return found


def naive_sta(module: Baseline, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    found: list[Slots] = []
    stay: list[int] = []
    score: dict[int, float] = {}
    for f, window in enumerate(clip):
        x, n = [unit(v) for v, _, _ in window], range(len(window))
        if f == 0:
            goes = []  # the even tokens first, the most alike first; then the odd ones
            for parity in (0, 1):
                of, others = range(parity, len(x), 2), range(1 - parity, len(x), 2)
                alike = {i: max(cosine(x[i], x[j]) for j in others) for i in of}
                goes += [i for _, i in sorted((-alike[i], i) for i in of)]
            stay = sorted(set(n) - set(goes[: len(x) - module.tokens]))
            score = dict.fromkeys(stay, 1 / len(stay))
        else:
            seen = [0.0 for _ in n]
            for j in stay:
                before = unit(clip[f - 1][j][0])
                for i, share in enumerate(softmax([cosine(v, before) for v in x])):
                    seen[i] += share * score[j]
            active = [sum(abs(a) for a in v) for v, _, _ in window]
            least, most = min(active), max(active)
            redundant = [seen[i] * (1 - (active[i] - least) / (most - least)) for i in n]
            stay = sorted(i for _, i in sorted(zip(redundant, n, strict=True))[: module.tokens])
            score = {i: seen[i] / sum(seen[j] for j in stay) for i in stay}
        found.append(alone(stay))
    return found


def naive_queries(window: Any, scores: list[list[float]]) -> Slots:
    """Slots that pool by a softmax over the tokens; scores[m][i]."""
    total = sum(size for _, size, _ in window)
    return [(dict(enumerate(softmax(row))), total / len(scores)) for row in scores]


def naive_patchmerger(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    queries = module.query.weight.tolist()
    return [naive_queries(w, [[dot(q, unit(v)) for v, _, _ in w] for q in queries]) for w in clip]


def naive_tokenlearner(module: Any, clip: Clip, prefix: list[float] | None) -> list[Slots]:
    weight, bias, maps = module.hidden.weight.tolist(), module.hidden.bias.tolist(), module.maps.weight.tolist()
    found = []
    for window in clip:
        hidden = []
        for v, _, _ in window:
            inner = [dot(row, unit(v)) + b for row, b in zip(weight, bias, strict=True)]
            hidden.append([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in inner])
        found.append(naive_queries(window, [[dot(row, h) for h in hidden] for row in maps]))
    return found


NAIVE: dict[str, Callable[..., list[Slots]]] = {
    name.removeprefix("naive_"): rule for name, rule in list(globals().items()) if name.startswith("naive_")
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("frames", "kept"), [(4, 13), (2, 7), (2, 23), (1, 30)])
@every_rival
def test_parity_with_plain_loops(name: str, frames: int, kept: int, seed: int) -> None:
    module, given = baseline(name, frames, kept), tokens(seed, prefix=seed == 0)
    merged, who = module(given)
    windows = module.windows
    for b in range(B):
        columns = given.x_BTSC[b].reshape(windows, -1, C), given.size_BTS[b].reshape(windows, -1)
        rows = [column.tolist() for column in (*columns, given.position_BTS3[b].reshape(windows, -1, 3))]
        clip = [list(zip(*window, strict=True)) for window in zip(*rows, strict=True)]
        prefix = None if given.prefix_BPC is None else given.prefix_BPC[b, 0].tolist()
        found = [
            (window, *slot) for window, s in zip(clip, NAIVE[name](module, clip, prefix), strict=True) for slot in s
        ]
        assert len(found) == module.frames * module.tokens
        x, size, place = (flat[b] for flat in (merged.x_BTSC, merged.size_BTS, merged.position_BTS3))
        for axis, out in ((0, x), (2, place)):
            expected = [
                [sum(w * window[i][axis][c] for i, w in weights.items()) for c in range(out.shape[-1])]
                for window, weights, _ in found
            ]
            torch.testing.assert_close(out.flatten(0, 1), torch.tensor(expected, dtype=out.dtype), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(size.flatten(), torch.tensor([slot[2] for slot in found], dtype=size.dtype))
        # Who went where: the slot that has the largest share of a token; -1 for one that is in none.
        length = T * S // windows
        for token in range(T * S):
            slots_of_window = found[token // length * len(found) // windows :][: len(found) // windows]
            shares = [weights.get(token % length, 0.0) for _, weights, _ in slots_of_window]
            best = token // length * len(found) // windows + shares.index(max(shares))
            assert who.assignment[b, token] == (best if max(shares) > 0 else -1)


# --- by themselves --------------------------------------------------------------------------------------------------


def test_sta_hands_scores_on_from_frame_to_frame() -> None:
    """Where all tokens but one are equally active, what was seen before is all that counts."""
    given = tokens()
    x = given.x_BTSC / given.x_BTSC.abs().sum(-1, keepdim=True)
    x[..., 0, :] *= 100
    module = baseline("sta", T, 6)
    _, who = module(Tokens(x, given.size_BTS, given.position_BTS3))
    for b in range(B):
        clip = [[(v, 1.0, [0.0] * 3) for v in frame] for frame in x[b].tolist()]
        stay = [next(iter(weights)) for window in naive_sta(module, clip, None) for weights, _ in window]
        assert (who.meta[b] % S).tolist() == stay


@every_rival
def test_macs_of_one_are_what_torch_counts(name: str) -> None:
    module = baseline(name, 2, 11).to("meta")
    given = Tokens.of_grid(torch.empty(1, T, S, C, device="meta"), H, W)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.float()(given)
    assert counter.get_total_flops() / 2 == module.macs(T, S)


@every_rival
def test_sizes_and_means(name: str) -> None:
    given = tokens()
    merged, _ = baseline(name)(given)
    if name in MERGING:
        torch.testing.assert_close(merged.size_BTS.sum((1, 2)), given.size_BTS.sum((1, 2)))
    else:
        assert (merged.size_BTS == 1).all()
    if name in MERGING - LEARNED:
        before = (given.size_BTS[..., None] * given.x_BTSC).sum((1, 2))
        torch.testing.assert_close((merged.size_BTS[..., None] * merged.x_BTSC).sum((1, 2)), before)


@every_rival
def test_a_constant_stays_constant(name: str) -> None:
    given = tokens()
    module = baseline(name)
    merged, who = module(Tokens(torch.full_like(given.x_BTSC, 3.25), given.size_BTS, given.position_BTS3))
    torch.testing.assert_close(merged.x_BTSC, torch.full_like(merged.x_BTSC, 3.25))
    assert merged.size_BTS.isfinite().all() and merged.position_BTS3.isfinite().all()
    assert who.assignment.max() < module.frames * module.tokens


@every_rival
def test_a_dropped_token_leaves_nothing_and_a_kept_one_everything(name: str) -> None:
    given = tokens()
    merged, who = baseline(name)(given)
    assert ((who.assignment < 0).any()) == (name in DROPPING)
    if name in DROPPING:
        flat = given.x_BTSC.flatten(1, 2)
        assert torch.equal(merged.x_BTSC.flatten(1, 2), torch.stack([flat[b, who.meta[b]] for b in range(B)]))
        assert torch.equal(who.assignment.gather(1, who.meta), torch.arange(who.meta.shape[1]).expand(B, -1))
    assert merged.prefix_BPC is given.prefix_BPC
    assert baseline(name)(given, mapped=False)[1] is None


def test_random_drop_is_random_in_training_and_regular_in_testing() -> None:
    module, given = baseline("random").train(), tokens()
    draws = {tuple(module(given)[1].meta.flatten().tolist()) for _ in range(5)}
    assert len(draws) == 5
    clips = next(iter(draws))
    assert clips[: len(clips) // B] != clips[len(clips) // B :]
    counts = torch.zeros(T * S)
    for _ in range(300):
        counts += torch.bincount(module(given)[1].meta.flatten(), minlength=T * S)
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    module.eval()
    assert torch.equal(module(given)[1].meta, module(tokens(5))[1].meta)
    regular = baseline("random", selector="stride").train()
    assert torch.equal(regular(given)[1].meta, module(given)[1].meta)


def test_pooling_is_ordinary_pooling_where_that_fits() -> None:
    x = torch.randn(1, 4, 64, C, generator=torch.Generator().manual_seed(0))
    merged, _ = METHODS["pool"](C, 2, 16, frames_in=4)(Tokens.of_grid(x, 8, 8))
    # [1 T S C] -> [1 C T H W] -> [1 C 2 4 4] -> [2 16 C]
    cubes = nn.functional.avg_pool3d(x.reshape(1, 4, 8, 8, C).permute(0, 4, 1, 2, 3), 2).flatten(3)[0].permute(1, 2, 0)
    for frame in range(2):
        order = [a[:, 0].argsort() for a in (merged.x_BTSC[0, frame], cubes[frame])]
        torch.testing.assert_close(merged.x_BTSC[0, frame][order[0]], cubes[frame][order[1]])


@every_rival
def test_gradients_reach_every_parameter_and_what_is_kept(name: str) -> None:
    module, given = baseline(name).train(), tokens()
    given.x_BTSC.requires_grad_()
    merged, who = module(given)
    merged.x_BTSC.square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert given.x_BTSC.grad is not None
    assert torch.equal(given.x_BTSC.grad.any(-1).flatten(1), who.assignment >= 0)
    assert not merged.size_BTS.requires_grad and not merged.position_BTS3.requires_grad


@every_rival
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 3e4])
def test_finite_at_any_scale(name: str, dtype: torch.dtype, scale: float) -> None:
    x = torch.randn(1, T, S, C, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[..., 0] = 2.0  # a channel of massive activations
    merged, _ = baseline(name).to(dtype)(Tokens.of_grid((x * scale).to(dtype), H, W))
    assert merged.x_BTSC.dtype == dtype and merged.x_BTSC.isfinite().all()
    assert (merged.size_BTS > 0).all() and merged.position_BTS3.abs().max() <= 1 + 1e-6


@every_rival
def test_one_token_a_window_can_be_left(name: str) -> None:
    x = torch.randn(1, T, 1, C, dtype=torch.float64)
    module = METHODS[name](C, 2, 1, frames_in=T, learned=name in LEARNED).double().eval()
    assert module(Tokens.of_grid(x, 1, 1))[0].x_BTSC.isfinite().all()
    single = METHODS[name](C, T, 1, frames_in=T, learned=name in LEARNED).double().eval()
    torch.testing.assert_close(single(Tokens.of_grid(x, 1, 1))[0].x_BTSC, x)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tome", dict(frames=3, frames_in=8), "divide"),
        ("tome", dict(tokens=0), "tokens=0"),
        ("pool", dict(selector="stride"), "leave selector out"),
        ("random", dict(selector="novelty"), "leave selector out"),
        ("patchmerger", {}, "learned=True"),
        ("tokenlearner", {}, "learned=True"),
    ],
)
def test_impossible_rivals_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sttm.SttmError, match=message):
        METHODS[name](**(dict(dim=8, frames=2, tokens=4) | arguments))


@every_rival
def test_another_grid_is_refused(name: str) -> None:
    with pytest.raises(sttm.SttmError, match="clip_shape"):
        baseline(name)(Tokens.of_grid(torch.zeros(1, T + 2, S, C), H, W))


# --- in models ------------------------------------------------------------------------------------------------------


def family(name: str) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def served(method: str, name: str) -> bool:
    if name == "timesformer-space":
        return method != "frames"
    return spec_of(method).aligned or not name.startswith("timesformer")


CASES = [(method, name) for method in BASELINES for name in FAMILIES if served(method, name)]
every_case = pytest.mark.parametrize(("method", "name"), CASES)


@every_case
@pytest.mark.parametrize("compute", [0.62, 0.5, 0.35])
def test_the_budget_is_met_and_counted_as_torch_counts(method: str, name: str, compute: float) -> None:
    model = family(name).to("meta")
    plan = sttm.apply(model, compute, method, learned=method in LEARNED)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *backbone_of(model).clip_shape(model), device="meta"))
    assert plan.compute <= compute
    assert counter.get_total_flops() / 2 == pytest.approx(plan.macs_after, rel=1e-6)


@cache
def on_meta(shape: str) -> Any:
    with torch.device("meta"):
        return SHAPES[shape]().to("meta").eval()


@pytest.mark.parametrize("shape", ["videomae-b", "timesformer-b", "vjepa2-l"])
@every_rival
def test_real_shapes_reach_every_budget(shape: str, name: str) -> None:
    model = on_meta(shape)
    if shape.startswith("timesformer") and not spec_of(name).aligned:
        with pytest.raises(sttm.SttmError, match=f"time at each place, which {name} does not keep; choose one of sttm"):
            sttm.apply(model, 0.62, name)
        return
    for compute in (0.62, 0.5, 0.35):
        plan = sttm.apply(model, compute, name, learned=name in LEARNED)
        assert compute - 0.01 <= plan.compute <= compute, plan
        sttm.remove(model)


@every_case
def test_a_reduced_model_keeps_every_promise(method: str, name: str) -> None:
    model = family(name)
    before = logits(model, pixels())
    plan = sttm.apply(model, 0.5, method, learned=method in LEARNED)
    with sttm.trace(model) as maps:
        both = logits(model, pixels())
    each = torch.cat([logits(model, clip[None]) for clip in pixels()])
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, before, atol=1e-5)
    grid = backbone_of(model).grid(model, (8, 3, 32, 32))
    assert [m.grid[1] for m in maps] == [(m.frames, m.tokens) for m in plan.mergers]
    picture = slots(maps, grid, clip=1)
    assert picture.max() < plan.mergers[-1].frames * plan.mergers[-1].tokens * grid.sequences
    assert (picture < 0).any() == (method in DROPPING)
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(model, pixels() * 30).isfinite().all()
    half = copy.deepcopy(model).bfloat16()
    assert logits(half, pixels().bfloat16()).isfinite().all()
    model.train()
    nn.functional.cross_entropy(model(pixels()).logits, torch.tensor([0, 1] * (len(both) // 2))).backward()
    dead = [n for n, p in model.named_parameters() if "predictor" not in n and (p.grad is None or not p.grad.any())]
    assert [n for n in dead if not n.endswith("key.bias")] == []
    sttm.remove(model)
    assert torch.equal(logits(model.eval(), pixels()), before)


@every_rival
def test_traces_as_one_graph(name: str) -> None:
    module, given = baseline(name), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")(given)
    torch.testing.assert_close(compiled[0].x_BTSC, module(given)[0].x_BTSC)
    assert torch.equal(compiled[1].assignment, module(given)[1].assignment)


@every_rival
def test_only_what_has_parameters_is_learned(name: str) -> None:
    model, twin = family("vivit"), family("vivit")
    assert sttm.apply(model, 0.5, name, learned=True).learned == (name in LEARNED)
    assert any(".merger." in n for n, _ in model.named_parameters()) == (name in LEARNED)
    if name not in LEARNED:
        sttm.apply(twin, 0.5, name)
        assert torch.equal(logits(model, pixels()), logits(twin, pixels()))


@every_rival
def test_saved_and_loaded_is_exact(name: str, tmp_path: Path) -> None:
    model = family("videomae")
    plan = sttm.apply(model, 0.5, name, learned=name in LEARNED)
    loaded = sttm.load(sttm.save(model, tmp_path / "reduced"))
    assert torch.equal(logits(loaded, pixels()), logits(model, pixels()))
    assert plan_of(loaded) == plan


def test_tome_merges_before_every_block_while_half_is_enough() -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, 0.62, "tome")
    assert [m.layer for m in plan.mergers] == list(range(1, 12))
    taken = [m.frames_before * m.tokens_before - m.tokens for m in plan.mergers]
    assert {m.frames for m in plan.mergers} == {1} and max(taken[:-1]) - min(taken[:-1]) <= 1
    sttm.remove(model)
    assert len(sttm.apply(model, 0.35, "tome").mergers) == 2
    sttm.remove(model)


def test_frames_go_early_and_whole() -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, 0.62, "frames")
    sttm.remove(model)
    assert plan.mergers[0].layer == 0 and {m.tokens for m in plan.mergers} == {196}


def test_one_frame_at_a_time_cannot_lose_frames() -> None:
    with pytest.raises(sttm.SttmError, match="one at a time; choose one of sttm"):
        sttm.apply(family("timesformer-space"), 0.5, "frames")


def test_size_weighs_attention_as_in_tome() -> None:
    """Of a clip whose tubes come in equal pairs, without positions, nothing is lost when pairs merge."""
    model = FAMILIES["videomae"]().eval()
    model.videomae.embeddings.position_embeddings.zero_()
    looks = torch.randn(32, 2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    # Neighbours in a row look alike: [T H W/2 2 C 8 8] -> [T*2 C H*8 W*8]
    tubes = looks.reshape(4, 4, 2, 1, 2, 3, 8, 8).expand(-1, -1, -1, 2, -1, -1, -1, -1).flatten(2, 3)
    clip = tubes.permute(0, 3, 4, 1, 5, 2, 6).reshape(1, 8, 3, 32, 32)
    before = logits(model, clip)
    merger = MergerPlan(1, 4, 16, 1, 40)
    install(model, Plan(1.0, 1, 1, (merger,), "tome", False, (8, 3, 32, 32), None, "videomae"))
    torch.testing.assert_close(logits(model, clip), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "frames"), [("evit", (1, 1)), ("sta", (8, 4)), ("tokenlearner", (8, 8)), ("pool", (4, 4))]
)
def test_windows_are_those_of_the_papers(name: str, frames: tuple[int, ...]) -> None:
    model = on_meta("videomae-b")
    plan = sttm.apply(model, 0.62, name, learned=name in LEARNED)
    sttm.remove(model)
    assert tuple(merger.frames for merger in plan.mergers) == frames
