"""How the weights learn: rates by layer, warm-up and cosine, drop path, the moving average, the loss.

Legend: B clips in a micro-batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.config.settings import DistillationSettings, OptimizerSettings
from sttm.patching.hooks import MERGER

#: What has no weight decay, besides everything with a single dimension.
UNDECAYED = ("position_embedding", "time_embedding", "cls_token")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for AdamW, each with its `scale`, the factor on the rate, and whether it is the merger's.

    The embeddings are layer 0, block i is layer i+1, all that follows is the last; a layer's factor is layer_decay to
    the power of its distance from the last. What a merger adds is new and learns at the full rate, or at merger_lr.
    """
    blocks = backbone_of(model).blocks(model)
    last = len(blocks) + 1
    layer_of = {id(p): number + 1 for number, block in enumerate(blocks) for p in block.parameters()}
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        merges = f".{MERGER}." in name
        layer = layer_of.get(id(parameter), 0 if ".embeddings." in name else last)
        scale = settings.layer_decay ** (last - layer)
        if merges:
            scale = 1.0 if settings.merger_lr is None else settings.merger_lr / settings.lr
        decayed = parameter.ndim > 1 and not any(part in name for part in UNDECAYED)
        decay = settings.weight_decay if decayed else 0.0
        empty = {"params": [], "scale": scale, "weight_decay": decay, "merges": merges}
        groups.setdefault((scale, decay, merges), empty)["params"].append(parameter)
    return list(groups.values())


def rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then half a cosine down to min_lr."""
    warmup = settings.warmup_steps if settings.warmup_steps is not None else steps // 10
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2


def set_rates(optimizer: torch.optim.Optimizer, lr: float, only_mergers: bool) -> None:
    """Gives each group its rate; in the merger's warm-up all others stand still."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if only_mergers and not group["merges"] else lr * group["scale"]


def loss_of(logits_BK: Tensor, targets_BK: Tensor, weight_B: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy against soft targets; a clip of weight 0, an unreadable one, has no gradient."""
    K = targets_BK.shape[-1]
    targets_BK = targets_BK * (1 - smoothing) + smoothing / K
    loss_B = -(targets_BK * F.log_softmax(logits_BK.float(), -1)).sum(-1)
    return (loss_B * weight_B).sum() / len(weight_B)


def taught(loss: Tensor, logits_BK: Tensor, teacher_BK: Tensor, weight_B: Tensor, how: DistillationSettings) -> Tensor:
    """The loss with the teacher's part: the divergence of the two answers, softened by the temperature.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    student = F.log_softmax(logits_BK.float() / how.temperature, -1)
    teacher = F.log_softmax(teacher_BK.float() / how.temperature, -1)
    apart_B = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * how.temperature**2
    return (1 - how.weight) * loss + how.weight * (apart_B * weight_B).sum() / len(weight_B)


class DropPath:
    """Skips a block for some clips of a batch while training, and scales it up for the others (stochastic depth).

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016. The whole block is one path: what it adds
    to the tokens that it was given, after any merging in front of it.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def __call__(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not block.training:
            return output
        given_BNC, made_BNC = args[0], output[0] if isinstance(output, tuple) else output
        kept_B11 = torch.rand(len(given_BNC), 1, 1, device=given_BNC.device) >= self.chance
        kept_BNC = given_BNC + (made_BNC - given_BNC) * kept_B11 / (1 - self.chance)
        kept_BNC = kept_BNC.to(made_BNC.dtype)
        return (kept_BNC, *output[1:]) if isinstance(output, tuple) else kept_BNC


def drop_paths(model: nn.Module, chance: float) -> None:
    """Hangs a DropPath on each block but the first, its chance growing evenly up to `chance` at the last."""
    blocks = backbone_of(model).blocks(model)
    for number, block in enumerate(blocks):
        if number and chance:
            block.register_forward_hook(DropPath(chance * number / (len(blocks) - 1)))


class MovingAverage:
    """An exponential moving average of the weights, with which a model can be run and saved.

    Early on it follows faster, at (1 + step) / (10 + step), so that it does not remember the start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lets the model have the averages for a while."""
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


def total_norm(parameters: Iterable[nn.Parameter], most: float | None) -> Tensor:
    """The norm of all gradients, which are scaled down to `most` where they are longer."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most is not None:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of a step's own noise (dropout, drop path, choices of the merger), the same whenever it is run."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)


def freeze_unused(model: nn.Module, clip_shape: tuple[int, int, int, int]) -> None:
    """Freezes what no logit depends on (V-JEPA 2's predictor): found by a backward pass of one blank clip."""
    device = next(model.parameters()).device
    model(torch.zeros(1, *clip_shape, device=device)).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def shard(model: nn.Module) -> None:
    """Shares parameters, gradients and optimizer state out over the processes, block by block (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for block in backbone_of(model).blocks(model):
        fully_shard(block)
    # The root too, which else stays whole after a forward: an average swapped in then would not be seen.
    fully_shard(model, reshard_after_forward=True)
