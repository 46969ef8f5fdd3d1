"""The parts of a training recipe: loss, distillation loss, drop path, moving average, frozen and sharded weights.

Legend: B clips in a micro-batch, N tokens, C width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.config.sections import DistillationSettings
from sttm.config.settings import Settings
from sttm.merging.motion import Motion

#: Share of the steps before a checkpoint's new motion feature is trained.
LATE_MOTION = 0.5


def classification_loss(logits_BK: Tensor, targets_BK: Tensor, weight_B: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy against soft targets; an unreadable clip has weight 0 and gives no gradient."""
    K = targets_BK.shape[-1]
    targets_BK = targets_BK * (1 - smoothing) + smoothing / K
    loss_B = -(targets_BK * F.log_softmax(logits_BK.float(), -1)).sum(-1)
    return (loss_B * weight_B).sum() / len(weight_B)


def add_distillation_loss(
    loss: Tensor, logits_BK: Tensor, teacher_BK: Tensor, weight_B: Tensor, settings: DistillationSettings
) -> Tensor:
    """Return the weighted sum of a loss and the distillation loss, the KL divergence at the given temperature.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    student = F.log_softmax(logits_BK.float() / settings.temperature, -1)
    teacher = F.log_softmax(teacher_BK.float() / settings.temperature, -1)
    kl_B = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * settings.temperature**2
    return (1 - settings.weight) * loss + settings.weight * (kl_B * weight_B).sum() / len(weight_B)


def motion_start(settings: Settings, model: nn.Module) -> float:
    """Return the share of the steps before motion features are trained (`merging.motion_start`).

    A checkpoint has learned from appearance, and goes on doing so while its new motion feature waits: the feature is
    learned fast, and a model that relies on it from the first step on ends lower (docs/motion.md).
    """
    if settings.merging.motion_start is not None:
        return settings.merging.motion_start
    maps = [module.map for module in model.modules() if isinstance(module, Motion)]
    new = not any(bool(parameter.any()) for linear in maps for parameter in linear.parameters())
    return LATE_MOTION if new and settings.model.start is not None and not settings.merging.warmup_steps else 0.0


class DropPath:
    """A forward hook that skips a block for some clips in training, and scales it up for the others.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016. The whole block is one path: what it adds
    to the tokens that it was given, after any merging before it.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not block.training:
            return output
        before_BNC, after_BNC = args[0], output[0] if isinstance(output, tuple) else output
        kept_B11 = torch.rand(len(before_BNC), 1, 1, device=before_BNC.device) >= self.probability
        kept_BNC = before_BNC + (after_BNC - before_BNC) * kept_B11 / (1 - self.probability)
        kept_BNC = kept_BNC.to(after_BNC.dtype)
        return (kept_BNC, *output[1:]) if isinstance(output, tuple) else kept_BNC


def add_drop_path(model: nn.Module, probability: float) -> None:
    """Add a DropPath to each block but the first; its probability grows linearly up to that of the last block."""
    blocks = backbone_of(model).blocks(model)
    for number, block in enumerate(blocks):
        if number and probability:
            # Before the hook of a merger inside the block, while the tokens are still those that came in.
            block.register_forward_hook(DropPath(probability * number / (len(blocks) - 1)), prepend=True)


class MovingAverage:
    """An exponential moving average of the weights (EMA), with which a model can be evaluated and saved.

    In the first steps the decay is lower, (1 + step) / (10 + step), so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averages inside the block, and its own weights back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.averages.items():
            kept = average.clone()
            average.copy_(self.parameters[name])
            self.parameters[name].copy_(kept)


def step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed for the random draws of one step (dropout, drop path, the merger); the same in every run."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)


def freeze_unused(model: nn.Module, clip_shape: tuple[int, int, int, int]) -> None:
    """Freeze the parameters without effect on the logits (V-JEPA 2's predictor), found by one backward pass."""
    device = next(model.parameters()).device
    model(torch.zeros(1, *clip_shape, device=device)).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def shard(model: nn.Module) -> None:
    """Shard parameters, gradients and optimizer state over the processes, block by block (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for block in backbone_of(model).blocks(model):
        fully_shard(block)
    # Reshard the root too: otherwise it stays gathered after a forward, and averages swapped in later have no effect.
    fully_shard(model, reshard_after_forward=True)
