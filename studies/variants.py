"""Variants of the merger that the ablation sets beside it, and the ways of finding meta tokens that lost to novelty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sttm
from sttm.backbones import backbone_of
from sttm.backbones.protocol import Seat
from sttm.merging import METHODS
from sttm.merging.merger import TokenMerger
from sttm.merging.meta import FINDERS, StrideFinder, regular_picks, stride_order, take
from sttm.plugging.plug import RECORD

NEEDS_TRAINING = ("sttm", "patchmerger", "tokenlearner")


class WithoutMotion(TokenMerger):
    """The path adds nothing."""

    def _added(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        return super()._added(z_BFMC, torch.zeros_like(path_BFMT2), torch.ones_like(size_BFM))


class WithoutAppearance(TokenMerger):
    """What was fused adds nothing."""

    def _added(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        return super()._added(z_BFMC.detach() * 0, path_BFMT2, size_BFM)


class SelectionOnly(TokenMerger):
    """Meta tokens as they are."""

    def _added(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        return torch.zeros_like(z_BFMC)


class Hard(TokenMerger):
    """Every token goes to one object; the gradient is that of the soft shares (straight through)."""

    def _shares(self, logit_BFLM: Tensor) -> Tensor:
        soft_BFLM = logit_BFLM.softmax(-1)
        hard_BFLM = torch.zeros_like(soft_BFLM).scatter(-1, logit_BFLM.argmax(-1, keepdim=True), 1.0)
        return hard_BFLM + soft_BFLM - soft_BFLM.detach()


class CoverageFinder(StrideFinder):
    """Half of the meta tokens on a regular stride, the other half where those represent the window worst."""

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> Tensor:
        seeds = (count + 1) // 2
        order_BFL = stride_order(position_BFL3)
        seed_BFM = order_BFL[..., regular_picks(order_BFL.shape[-1], seeds, x_BFLC.device)]
        unit_BFLC = nn.functional.normalize(x_BFLC, dim=-1)
        covered_BFL = (unit_BFLC @ take(unit_BFLC, seed_BFM).transpose(-1, -2)).amax(-1)
        worst_BFM = covered_BFL.scatter(-1, seed_BFM, 4.0).topk(count - seeds, dim=-1, largest=False).indices
        return torch.cat((seed_BFM, worst_BFM), dim=-1)

    def macs(self, windows: int, length: int, count: int, width: int) -> int:
        return windows * length * ((count + 1) // 2) * width


class RandomFinder(StrideFinder):
    """Meta tokens at random while training, on a regular stride in testing."""

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> Tensor:
        if not self.training:
            return super().forward(x_BFLC, position_BFL3, count)
        return torch.rand(x_BFLC.shape[:-1], device=x_BFLC.device).topk(count).indices


class SaliencyMerger(TokenMerger):
    """Meta tokens by a learned score, with Gumbel noise while training; a gate of one carries the gradient to it.

    Source: Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017; Kool, van Hoof, Welling,
    "Stochastic Beams and Where to Find Them", ICML 2019 (Gumbel top-k).
    """

    def __init__(self, dim: int, frames: int, tokens: int, **options: Any) -> None:
        super().__init__(dim, frames, tokens, **options | {"finder": "stride"})
        self.score = nn.Linear(dim, 1)

    def _meta_tokens(self, x_BFLC: Tensor, feature_BFLC: Tensor, position_BFL3: Tensor) -> tuple[Tensor, Tensor]:
        score_BFL = self.score(feature_BFLC).squeeze(-1)
        ranked_BFL = score_BFL
        if self.training:
            uniform = torch.rand_like(score_BFL).clamp(1e-6, 1 - 1e-6)
            ranked_BFL = score_BFL - torch.log(-torch.log(uniform))
        meta_BFM = ranked_BFL.topk(self.tokens, dim=-1).indices
        gate_BFM = torch.sigmoid(score_BFL.gather(-1, meta_BFM)).clamp(min=1e-4)
        gate_BFM = gate_BFM / gate_BFM.detach()
        return meta_BFM, take(x_BFLC, meta_BFM) * gate_BFM[..., None].to(x_BFLC.dtype)

    def macs(self, frames: int, tokens: int) -> int:
        return super().macs(frames, tokens) + frames * tokens * self.dim


#: Mergers that differ, and arguments of sttm.apply that do.
MERGERS: dict[str, type[TokenMerger]] = {
    "without motion": WithoutMotion,
    "without appearance": WithoutAppearance,
    "selection only": SelectionOnly,
    "hard": Hard,
    "saliency": SaliencyMerger,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "within a frame": {"window": 1},
    "over time only": {"window": 2, "layers": [0], "finder": "first frame"},
    "window of the clip": {"window": 4},
    "before block 0": {"layers": [0]},
    "before block 1": {"layers": [1]},
    "before blocks 1, 2, 3": {"layers": [1, 2, 3]},
    "stride": {"finder": "stride"},
    "coverage": {"finder": "coverage"},
    "random": {"finder": "random"},
}
SIZED = "size-proportional"


class FirstFrameFinder(StrideFinder):
    """The tokens of the first frame of a window, as many as are asked for, on a regular stride there."""

    def forward(self, x_BFLC: Tensor, position_BFL3: Tensor, count: int) -> Tensor:
        first_BFL = stride_order(position_BFL3)[..., : position_BFL3.shape[2] // 2]
        return first_BFL[..., regular_picks(first_BFL.shape[-1], count, x_BFLC.device)]


FINDERS |= {"coverage": CoverageFinder, "random": RandomFinder, "first frame": FirstFrameFinder}
METHODS |= {f"sttm, {name}": merger for name, merger in MERGERS.items()}


def put_in(model: nn.Module, method: str, compute: float, variant: str, *, learned: bool = True) -> None:
    """Puts a method into a model, in that variant."""
    if method == "plain":
        return
    name = f"{method}, {variant}" if variant in MERGERS else method
    learned = learned and method in NEEDS_TRAINING
    sttm.apply(model, compute=compute, method=name, learned=learned, **ARGUMENTS.get(variant, {}))
    if variant == SIZED:
        record, backbone = getattr(model, RECORD), backbone_of(model)
        seats = [Seat(m.layer, index, m.frames, m.tokens) for index, m in enumerate(record.plan.mergers)]
        backbone.weigh_by_size(record.patch, model, seats, record.ledger)
