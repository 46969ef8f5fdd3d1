"""The optimizer: its parameter groups, its learning rates, gradient clipping, and Muon beside AdamW."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sttm.backbones import backbone_of
from sttm.config.sections import OptimizerSettings
from sttm.patching.hooks import MERGER

#: Parameters without weight decay, besides all one-dimensional ones.
UNDECAYED = ("position_embedding", "time_embedding", "cls_token")


class MuonAdamW:
    """Muon for the matrices of the blocks and AdamW for all other parameters, with the interface of one optimizer.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Attributes:
        param_groups: the groups of both.
        state: parameter -> the entries of its state; both optimizers keep theirs here.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: OptimizerSettings) -> None:
        # "original" scales the step of a matrix [A, B] by sqrt(max(1, A / B)); it is what muon_lr=0.02 was chosen for.
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        muon = torch.optim.Muon(matrices, lr=settings.muon_lr, adjust_lr_fn="original")
        adamw = torch.optim.AdamW(others, lr=settings.lr, betas=settings.betas)
        self.optimizers = (muon, adamw)
        self.param_groups: list[dict[str, Any]] = [*muon.param_groups, *adamw.param_groups]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        for optimizer in self.optimizers:
            optimizer.state = self.state

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()


Optimizer = torch.optim.AdamW | MuonAdamW


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer that `settings.name` asks for, over all parameters of a model, plain or merged."""
    groups = parameter_groups(model, settings)
    if settings.name == "muon":
        return MuonAdamW(groups, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return parameter groups that hold every parameter once.

    The embeddings are layer 0, block i is layer i + 1, and all that follows is the last layer. The scale of a layer is
    layer_decay to the power of its distance from the last. A merger has scale 1, or merger_lr / lr. Under Muon, the
    matrices of the blocks have the same scale times muon_lr / lr; mergers are AdamW's, which their inputs are scaled
    for.

    Returns:
        Groups with the keys `params`, `weight_decay`, `scale` (learning rate of the group over `settings.lr`), `merger`
        (whether its parameters are a merger's), `motion` (whether they are of a motion feature) and `muon` (whether
        they are for Muon).
    """
    blocks = backbone_of(model).blocks(model)
    last = len(blocks) + 1
    layer_of = {id(p): number + 1 for number, block in enumerate(blocks) for p in block.parameters()}
    groups: dict[tuple[float, float, bool, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        merger, motion = f".{MERGER}." in name, f".{MERGER}.motion." in name
        layer = layer_of.get(id(parameter), 0 if ".embeddings." in name else last)
        scale = settings.layer_decay ** (last - layer)
        if merger:
            scale = 1.0 if settings.merger_lr is None else settings.merger_lr / settings.lr
        decayed = parameter.ndim > 1 and not any(part in name for part in UNDECAYED)
        decay = settings.weight_decay if decayed else 0.0
        muon = settings.name == "muon" and parameter.ndim == 2 and not merger and id(parameter) in layer_of
        if muon:
            scale *= settings.muon_lr / settings.lr
            decay = settings.weight_decay if settings.muon_weight_decay is None else settings.muon_weight_decay
        empty = dict(params=[], scale=scale, weight_decay=decay, merger=merger, motion=motion, muon=muon)
        groups.setdefault((scale, decay, merger, motion, muon), empty)["params"].append(parameter)
    return list(groups.values())


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then half a cosine down to min_lr."""
    warmup = settings.warmup_steps if settings.warmup_steps is not None else steps // 10
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rates(optimizer: Optimizer, lr: float, only_mergers: bool, motion: bool = True) -> None:
    """Set the learning rate of each group to lr times its scale, and of what is not trained to 0.

    Args:
        only_mergers: whether nothing but the mergers is trained.
        motion: whether motion features are trained.
    """
    for group in optimizer.param_groups:
        still = (only_mergers and not group["merger"]) or (group["motion"] and not motion)
        group["lr"] = 0.0 if still else lr * group["scale"]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Return the norm of all gradients, after scaling them down to `max_norm` where it is exceeded."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
