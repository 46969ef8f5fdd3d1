"""The model that one process trains, and its forward, backward and optimizer step.

Legend: B clips in a micro-batch, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sttm.backbones import backbone_of
from sttm.config import Settings
from sttm.data.loader import Batch
from sttm.devices import DTYPES
from sttm.patching import api
from sttm.training import build, optimizer, recipe
from sttm.training.checkpoints import TrainingState


class Learner:
    """A model on its device, wrapped or sharded for its processes, with its optimizer and its teacher.

    Attributes:
        training: the model (unwrapped), its optimizer and the average of its weights: what a checkpoint keeps.
        macs: multiply-adds of one clip.
        plan: the plan of its mergers; None for a plain model.
        initialised: parts of the model that start from random weights, though it comes from a checkpoint.
        dtype: of autocast; torch.float32 for none.
    """

    def __init__(self, settings: Settings, accelerator: Any, classes: Sequence[str]) -> None:
        self.settings, self.accelerator, device = settings, accelerator, accelerator.device
        model, preprocess, teacher, self.initialised = build.build_model(settings, classes)
        self.motion_start = recipe.motion_start(settings, model)
        self.macs, self.plan = api.macs(model), api.plan_of(model) if api.is_merged(model) else None
        model.to(device)
        self.teacher = None if teacher is None else teacher.to(device)
        if settings.model.checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        recipe.add_drop_path(model, settings.model.drop_path)
        recipe.freeze_unused(model, backbone_of(model).clip_shape(model))
        self.sharded = settings.run.strategy == "fsdp" and accelerator.num_processes > 1
        if self.sharded:
            recipe.shard(model)
        if settings.model.compile:
            model.compile()
        average = recipe.MovingAverage(model, settings.optimizer.ema) if settings.optimizer.ema else None
        own_optimizer = optimizer.make_optimizer(model, settings.optimizer)
        self.training = TrainingState(model, own_optimizer, average, preprocess)
        self.wrapped: Any = model if self.sharded else accelerator.prepare_model(model)
        self.dtype = DTYPES[settings.run.precision]

    def backward(self, micro_batches: list[Batch], step: int) -> tuple[float, float]:
        """Compute the gradients of a step, counted from 0; return its loss and their norm before clipping."""
        torch.manual_seed(recipe.step_seed(self.settings.run.seed, step, self.accelerator.process_index))
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last or self.sharded else self.accelerator.no_sync(self.wrapped):
                loss = self._loss(batch) / len(micro_batches)
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = optimizer.clip_gradients(self.training.model.parameters(), self.settings.optimizer.clip_norm)
        return float(self.accelerator.reduce(total, "mean")), float(norm)

    def step(self, step: int, steps: int) -> float:
        """Update the weights, and their average; return the learning rate."""
        settings, training = self.settings, self.training
        lr = optimizer.learning_rate(step, steps, settings.optimizer)
        only_mergers = step < settings.merging.warmup_steps
        motion = step >= self.motion_start * steps
        optimizer.set_learning_rates(training.optimizer, lr, only_mergers, motion)
        training.optimizer.step()
        training.optimizer.zero_grad()
        if training.average is not None:
            training.average.update(step)
        return lr

    def _loss(self, batch: Batch) -> Tensor:
        device, distillation = self.accelerator.device, self.settings.distillation
        pixels_BTCHW, targets_BK = batch.pixels_BTCHW.to(device, non_blocking=True), batch.targets_BK.to(device)
        weight_B = batch.weight_B.to(device)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits_BK = _clip_logits(self.wrapped(pixels_BTCHW).logits, len(pixels_BTCHW))
            loss = logits_BK.new_zeros(())
            if not self.settings.data.unlabelled:
                loss = recipe.classification_loss(logits_BK, targets_BK, weight_B, self.settings.optimizer.smoothing)
            if self.teacher is None or distillation is None:
                return loss
            with torch.no_grad():
                teacher_BK = _clip_logits(self.teacher(pixels_BTCHW).logits, len(pixels_BTCHW))
            return recipe.add_distillation_loss(loss, logits_BK, teacher_BK, weight_B, distillation)


def _clip_logits(logits: Tensor, clips: int) -> Tensor:
    """Return logits [B K]; a space-only TimeSformer gives a row for each frame: [B*T K] -> [B T K] -> [B K]."""
    return logits if len(logits) == clips else logits.unflatten(0, (clips, -1)).mean(1)
