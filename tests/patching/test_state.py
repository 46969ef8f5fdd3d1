"""State belongs to one forward: threads, replicas, checkpointing, exceptions and other models leave an answer alone."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import sttm
from sttm.backbones import backbone_of
from sttm.patching.state import local
from tests.helpers import FAMILIES, answer, lively, logits, pixels, stir

#: The merger in every family; methods that merge inside a block in those whose blocks open up.
INSIDE = [("videomae", "evit"), ("vivit", "tome"), ("vjepa2", "tome"), ("vit", "evit")]
CASES = [*((family, "sttm") for family in FAMILIES), *INSIDE, ("dinov3", "tome")]


@pytest.fixture(params=CASES, ids="-".join)
def model(request: pytest.FixtureRequest) -> Any:
    family, method = request.param
    model = lively(family)
    sttm.apply(model, compute=0.6, method=method, learned=True)
    stir(model)
    return model


def in_threads(calls: list[Any], threads: int) -> list[Any]:
    """Run calls in threads that all start together."""
    barrier = threading.Barrier(threads)

    def share(number: int) -> list[tuple[int, Any]]:
        barrier.wait()
        return [(index, calls[index]()) for index in range(number, len(calls), threads)]

    with ThreadPoolExecutor(threads) as pool:
        found = dict(entry for some in pool.map(share, range(threads)) for entry in some)
    return [found[index] for index in range(len(calls))]


def test_eight_threads_answer_as_one(model: Any) -> None:
    """1,000 forwards of each family, bit for bit what one thread gives."""
    clips = [pixels(model, 1, seed) for seed in range(8)]
    alone = [logits(model, clip) for clip in clips]
    found = in_threads([lambda clip=clip: logits(model, clip) for clip in clips * 125], threads=8)
    wrong = [index for index, answer in enumerate(found) if not torch.equal(answer, alone[index % 8])]
    assert wrong == []


def test_replicas_answer_as_the_model(model: Any) -> None:
    """Shallow copies that share hooks and have tensors of their own, as DataParallel makes them."""

    def replica(module: nn.Module) -> nn.Module:
        copied = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            copied._modules[name] = None if child is None else replica(child)
        for name, parameter in module._parameters.items():
            # As of another device: halved, so that an answer with the first model's weights shows.
            value = None if parameter is None else parameter.detach() * 0.5
            copied._parameters.pop(name, None)
            setattr(copied, name, value)
        return copied

    replicas = [replica(model) for _ in range(4)]
    clips = [pixels(model, 1, seed) for seed in range(4)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    alone = [logits(model, clip) for clip in clips]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    calls = [lambda r=r, c=c: logits(r, c) for _ in range(5) for r, c in zip(replicas, clips, strict=True)]
    for index, found in enumerate(in_threads(calls, threads=4)):
        assert torch.equal(found, alone[index % 4])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # use_reentrant has a newer name in some versions
def test_checkpointed_forwards_before_one_backward(model: Any, reentrant: bool) -> None:
    """Every forward is recomputed with its own sizes, also in another thread."""
    model.train()
    clips = [pixels(model, 1, seed) for seed in range(3)]

    def loss() -> torch.Tensor:
        torch.manual_seed(3)  # DINOv3 scales its coordinates at random in training
        return torch.stack([answer(model, clip).square().sum() for clip in clips]).sum()

    loss().backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    total = loss()
    other = threading.Thread(target=total.backward)
    other.start()
    other.join()
    assert not local.states and local.slots is None and not local.steps
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_checkpointing_around_blocks_is_refused(model: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    blocks = backbone_of(model).blocks(model)
    for number, block in enumerate(blocks):
        blocks[number] = checkpoint_wrapper(block)
    model.train()
    loss = answer(model, pixels(model)).sum()
    with pytest.raises(sttm.SttmError, match="gradient_checkpointing_enable"):
        loss.backward()


def test_an_exception_leaves_nothing_behind(model: Any) -> None:
    expected = logits(model, pixels(model))
    for block in backbone_of(model).blocks(model)[1:]:

        def fail(*_: object) -> None:
            raise RuntimeError("in the middle")

        for module in (block, *block.children()):
            handle = module.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="in the middle"):
                logits(model, pixels(model, 1, seed=9))
            handle.remove()
            assert local.states == [] and local.steps == []
            assert torch.equal(logits(model, pixels(model)), expected)


def test_a_model_inside_itself(model: Any) -> None:
    """A forward of the same model in the middle of a forward, on another number of clips."""
    expected, inner = logits(model, pixels(model)), logits(model, pixels(model, 3, seed=5))
    found: list[torch.Tensor] = []

    def interrupt(*_: object) -> None:
        if not found:
            found.append(torch.empty(0))
            found.append(logits(model, pixels(model, 3, seed=5)))

    handle = backbone_of(model).blocks(model)[-1].register_forward_pre_hook(interrupt)
    assert torch.equal(logits(model, pixels(model)), expected)
    handle.remove()
    assert torch.equal(found[1], inner)


def test_the_base_by_itself(model: Any) -> None:
    base = backbone_of(model).base(model)
    options = {"skip_predictor": True} if "VJEPA2" in type(model).__name__ else {}
    with torch.no_grad(), sttm.trace(model) as maps:
        first = base(pixels(model), **options)[0]
        model(pixels(model, 1, seed=7))
        assert torch.equal(base(pixels(model), **options)[0], first)
    mergers = sttm.patching.api.plan_of(model).mergers
    assert len(maps) == 3 * len(mergers) and local.states == []


def test_trace_sees_its_own_thread_only_and_stops(model: Any) -> None:
    mergers = len(sttm.patching.api.plan_of(model).mergers)
    stop, started = threading.Event(), threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            logits(model, pixels(model, 3, seed=4))
            started.set()

    other = threading.Thread(target=keep_busy)
    other.start()
    started.wait()
    try:
        with sttm.trace(model) as maps:
            logits(model, pixels(model, 2))
            with sttm.trace(model) as inner:
                logits(model, pixels(model, 2))
        logits(model, pixels(model, 2))
    finally:
        stop.set()
        other.join()
    assert len(maps) == 2 * mergers and len(inner) == mergers
    assert {len(found.assignment) % 2 for found in maps} == {0}
    logits(model, pixels(model, 2))
    assert len(maps) == 2 * mergers


def test_trace_sees_its_own_model_only(model: Any) -> None:
    other = copy.deepcopy(model)
    with sttm.trace(model) as maps, sttm.trace(other) as others:
        logits(model, pixels(model))
    assert maps and not others


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("timesformer")])
def test_attention_without_its_slots_is_no_answer(family: str) -> None:
    """As where a layer no longer hands its keyword arguments on: an error, not attention that forgets the sizes."""
    model = lively(family)
    sttm.apply(model, compute=0.5)
    last = backbone_of(model).blocks(model)[-1]
    (attention,) = backbone_of(model).layer(last).attention
    with pytest.raises(AssertionError, match="called without"):
        attention.module(torch.zeros(1, 4, 48))
