"""Uses within one process that change no weights: copies, precisions, transforms of torch, compilers and exporters."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

import sttm
from sttm.patching import api
from tests.ecosystem.registry import Room, Subject, assert_alike, same, use
from tests.helpers import answer, logits, pixels, said


@use("`copy.deepcopy`", "the copy answers alike, and stands alone")
def deepcopy(subject: Subject, room: Room) -> None:
    _stands_alone(subject, copy.deepcopy)


@use("`pickle`, `torch.save` of the model", "what comes back is merged and answers alike")
def pickled(subject: Subject, room: Room) -> None:
    _stands_alone(subject, lambda model: pickle.loads(pickle.dumps(model)))


def _stands_alone(subject: Subject, copied: Any) -> None:
    model = subject.plain()
    plain = logits(model, pixels(model))
    subject.apply(model)
    twin = copied(model)
    assert_alike(twin, model)
    assert api.plan_of(twin) == api.plan_of(model)
    expected = logits(model, pixels(model))
    sttm.remove(model)
    assert torch.equal(logits(model, pixels(model)), plain)
    assert torch.equal(logits(twin, pixels(model)), expected)
    sttm.remove(twin)
    assert torch.equal(logits(twin, pixels(model)), plain)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]


@use("`state_dict`", "saved by `torch.save`, read with `weights_only`, exact")
def state_dict(subject: Subject, room: Room) -> None:
    model, other = subject.merged(), subject.merged()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    torch.save(model.state_dict(), room.folder / "state.pt")
    other.load_state_dict(torch.load(room.folder / "state.pt", weights_only=True))
    assert_alike(other, model)


@use("bf16 and fp16 weights", "before and after `sttm.apply`: finite, in that dtype")
def half(subject: Subject, room: Room) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        first, last = subject.plain().to(dtype), subject.merged().to(dtype)
        subject.apply(first)
        for model in (first, last):
            out = logits(model, pixels(model).to(dtype))
            assert out.dtype == dtype and out.isfinite().all()


@use("`torch.autocast`", "bf16: finite, also with pixels far out of range")
def autocast(subject: Subject, room: Room) -> None:
    model = subject.merged()
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(model, pixels(model) * 30)
    assert out.isfinite().all()


@use("gradient checkpointing", "reentrant or not: the same loss to the bit, the same gradients")
def checkpointing(subject: Subject, room: Room) -> None:
    model = subject.merged().train()

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        torch.manual_seed(3)
        loss = answer(model, pixels(model)).square().sum()
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    loss, gradients = step()
    for reentrant in (False, True):
        with warnings.catch_warnings():
            # The name that every supported version knows; the newest calls it an alias.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        again, recomputed = step()
        assert torch.equal(again, loss) and gradients.keys() == recomputed.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@use("`torch.func.vmap`", "over clips: what a loop gives")
def vmap(subject: Subject, room: Room) -> None:
    model = subject.merged()
    clips = torch.stack([pixels(model, 1, seed) for seed in range(3)])
    with torch.no_grad():
        found = torch.func.vmap(lambda clip: answer(model, clip))(clips)
        expected = torch.stack([answer(model, clip) for clip in clips])
    same(found, expected)


@use("int8 by `quantize_dynamic`", "the merger's Linears too; answers point the same way")
def int8(subject: Subject, room: Room) -> None:
    model = subject.merged()
    expected = logits(model, pixels(model))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert not any(isinstance(m, nn.Linear) for n, m in quantized.named_modules() if ".merger." in n)
    _points_the_same_way(logits(quantized, pixels(model)), expected)


@use("int8 by torchao", "where torchao is installed: weights only; answers point the same way")
def torchao(subject: Subject, room: Room) -> None:
    import pytest

    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed; no extra brings it")
    model = subject.merged()
    expected = logits(model, pixels(model))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(next(m for m in model.modules() if isinstance(m, nn.Linear)).weight.data) is not torch.Tensor
    _points_the_same_way(logits(model, pixels(model)), expected)


def _points_the_same_way(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.isfinite().all() and not torch.equal(found, expected)
    assert nn.functional.cosine_similarity(found, expected).min() > 0.9


class Answer(nn.Module):
    """A model that returns what it says of clips, and nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return answer(self.model, clips)


@use("`torch.jit.trace`", "answers alike on other clips")
def jit_trace(subject: Subject, room: Room) -> None:
    model = subject.merged()
    with torch.no_grad():
        traced = torch.jit.trace(Answer(model).eval(), (pixels(model),), strict=False, check_trace=False)
        same(traced(pixels(model, seed=3)), logits(model, pixels(model, seed=3)))


@use("`torch.compile`", "fullgraph: one graph, which answers alike", long=True)
def compiled(subject: Subject, room: Room) -> None:
    model = subject.merged()
    expected = logits(model, pixels(model))
    torch._dynamo.reset()
    same(logits(torch.compile(model, fullgraph=True, backend="aot_eager"), pixels(model)), expected)


def _any_batch(model: Any) -> dict[int, Any]:
    """Return the dynamic dimension of a batch; of whole clips, to a model of pictures."""
    clips, pictures = torch.export.Dim("clips", min=1, max=64), len(pixels(model, 1))
    return {0: clips if pictures == 1 else pictures * clips}


@use("`torch.export`", "a batch of any size (ViViT: of one size); answers alike", long=True)
def exported(subject: Subject, room: Room) -> None:
    model = subject.merged()
    name, fixed = model.main_input_name, subject.family == "vivit"
    # transformers' ViViT makes a mask from the number of clips, which becomes a constant.
    dynamic = None if fixed else {name: _any_batch(model)}
    graph = torch.export.export(model, (), {name: pixels(model)}, dynamic_shapes=dynamic)
    other = pixels(model, 2 if fixed else 3, seed=5)
    same(said(graph.module()(**{name: other})), logits(model, other))


@use("`torch.onnx.export`", "ONNX Runtime answers alike, for a batch of any size", long=True)
def onnx(subject: Subject, room: Room) -> None:
    import onnxruntime

    model = subject.merged()
    model.set_attn_implementation("eager") if not subject.family.startswith("timesformer") else None

    file = room.folder / "model.onnx"
    torch.onnx.export(Answer(model).eval(), (pixels(model),), file, dynamo=True, dynamic_shapes=(_any_batch(model),))
    session = onnxruntime.InferenceSession(file)
    for clips in (pixels(model), pixels(model, 3, seed=5)):
        (found,) = session.run(None, {session.get_inputs()[0].name: clips.numpy()})
        np.testing.assert_allclose(found, logits(model, clips).numpy(), rtol=1e-4, atol=1e-4)
