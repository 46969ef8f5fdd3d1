"""Uses that train, shard or move a merged model: DDP, FSDP2, accelerate, PEFT, the Trainer, other processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sttm
from sttm.backbones import backbone_of
from sttm.models import load
from sttm.patching import api
from tests.ecosystem import processes
from tests.ecosystem.registry import Room, Subject, assert_alike, same, use
from tests.helpers import answer, auto_class, logits, pixels, stir


@use("DDP", "one process: answers and gradients of the model by itself")
def ddp(subject: Subject, room: Room) -> None:
    room.group()
    model = subject.merged()
    expected = processes.gradients(model, pixels(model))
    model.zero_grad()
    # V-JEPA 2's predictor and mask tokens have no part in classification, merged or not.
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    assert torch.equal(logits(wrapped, pixels(model)), logits(model, pixels(model)))
    processes.assert_same(processes.gradients(wrapped, pixels(model)), expected)


@use("DDP on two processes", "half of the clips each: the gradients of one process with all", long=True)
def ddp_two(subject: Subject, room: Room) -> None:
    model = subject.merged()
    clips = pixels(model, 4)
    expected = processes.gradients(model, clips)
    model.zero_grad()
    pool = room.pool()
    for found in [pool.submit(processes.ddp_step, model, half) for half in clips.chunk(2)]:
        processes.assert_same(found.result(timeout=240), expected)


@use("`multiprocessing` by spawn", "a process that gets the model answers alike", long=True)
def spawned(subject: Subject, room: Room) -> None:
    model = subject.merged()
    found, plan = room.pool().submit(processes.answer_of, model, pixels(model)).result(timeout=240)
    assert plan == api.plan_of(model) and torch.equal(found, logits(model, pixels(model)))


@use("FSDP2, each block", "in one process: answers alike; mergers get gradients")
def fsdp2_blocks(subject: Subject, room: Room) -> None:
    _sharded(subject, room, lambda model: backbone_of(model).blocks(model))


@use("FSDP2, each Linear", "the same")
def fsdp2_linears(subject: Subject, room: Room) -> None:
    _sharded(subject, room, lambda model: [m for m in model.modules() if isinstance(m, nn.Linear)])


def _sharded(subject: Subject, room: Room, parts: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    room.group()
    model = subject.merged()
    expected = logits(model, pixels(model))
    for module in parts(model):
        fully_shard(module)
    fully_shard(model)
    same(logits(model, pixels(model)), expected)
    answer(model, pixels(model)).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if ".merger." in n]
    assert bool(grads) == subject.trains and all(grad is not None for grad in grads)


@use("accelerate: `prepare`, `save_state`, `load_state`", "exact; a state of other merging is refused")
def accelerate(subject: Subject, room: Room) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(subject.merged())
    accelerator.save_state(str(room.folder))
    expected = logits(model, pixels(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    accelerator.load_state(str(room.folder))
    assert torch.equal(logits(model, pixels(model)), expected)
    fresh = Accelerator(cpu=True)
    fresh.prepare(subject.plain())
    with pytest.raises(RuntimeError, match="merger"):
        fresh.load_state(str(room.folder))


@use("accelerate: offload to CPU memory", "the mergers' weights too; answers alike")
def cpu_offload(subject: Subject, room: Room) -> None:
    from accelerate import cpu_offload

    _offloaded(subject, lambda model: cpu_offload(model, execution_device=torch.device("cpu")))


@use("accelerate: offload to disk", "the same")
def disk_offload(subject: Subject, room: Room) -> None:
    from accelerate import disk_offload

    _offloaded(subject, lambda model: disk_offload(model, str(room.folder), execution_device=torch.device("cpu")))


def _offloaded(subject: Subject, offload: Any) -> None:
    model = subject.merged()
    expected = logits(model, pixels(model))
    offload(model)
    assert all(parameter.is_meta for name, parameter in model.named_parameters() if ".merger." in name)
    assert any(parameter.is_meta for parameter in model.parameters())
    same(logits(model, pixels(model)), expected)


@use("LoRA by PEFT, then `sttm.apply`", "every adapter learns, the mergers too; `sttm.remove` goes")
def lora_before(subject: Subject, room: Room) -> None:
    model = _adapted(subject.plain())
    subject.apply(model)
    _learns(subject, model, "merger" if subject.trains else "lora_A")


@use("`sttm.apply`, then LoRA by PEFT", "adapters in the mergers as well; every one learns")
def lora_after(subject: Subject, room: Room) -> None:
    model = _adapted(subject.merged())
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    linears = [m for n, m in subject.merged().named_modules() if ".merger." in n and isinstance(m, nn.Linear)]
    assert sum(".merger." in name for name in names) == len(linears)
    _learns(subject, model, "lora_A")


def _adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def _learns(subject: Subject, model: Any, what: str) -> None:
    assert api.is_merged(model) and sttm.macs(model) == api.plan_of(model).macs_after
    stir(model)  # at its start, motion has no gradient for what is in front of its map
    model.train()
    out = answer(model, pixels(model, 5))
    # All classes: a single one would leave parts of the head without gradient.
    nn.functional.cross_entropy(out, torch.arange(len(out)) % 5).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    dead = [name for name, grad in trained.items() if grad is None or not grad.any()]
    assert any(what in name for name in trained)
    assert [name for name in dead if "predictor" not in name] == []
    sttm.remove(model)
    assert not api.is_merged(model)


@use("transformers' `Trainer`, with resume", "checkpoints come back merged; a resumed run ends where the other did")
def trainer(subject: Subject, room: Room) -> None:
    from transformers import Trainer, TrainingArguments

    class ByAnswer(Trainer):
        """For models without a head, which return no loss."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            out = answer(model, inputs[api.unwrap(model).main_input_name])
            loss = nn.functional.cross_entropy(out, labels)
            return (loss, {"logits": out}) if return_outputs else loss

    model, again = subject.merged(), subject.merged()
    name, headed = model.main_input_name, "Classification" in type(model).__name__
    data = [{name: clip, "labels": number % 5} for number, clip in enumerate(pixels(model, 4))]
    pictures = len(pixels(model, 1))  # in a clip, to a model of pictures
    arguments = TrainingArguments(
        str(room.folder), max_steps=2, save_steps=1, per_device_train_batch_size=2 * pictures, report_to=[],
        use_cpu=True, seed=0, remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    kind = Trainer if headed else ByAnswer
    before = logits(model, pixels(model))
    kind(model, arguments, train_dataset=data).train()
    assert not torch.equal(logits(model.eval(), pixels(model)), before)
    read = auto_class(model).from_pretrained if headed else load
    assert_alike(read(room.folder / "checkpoint-2").eval(), model)
    # Resumed from the first step, a run ends where the first one did.
    kind(again, arguments, train_dataset=data).train(resume_from_checkpoint=str(room.folder / "checkpoint-1"))
    same(logits(again.eval(), pixels(model)), logits(model, pixels(model)))
