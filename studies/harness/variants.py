"""Variants of the merger that the ablation sets beside it, and the ways of finding meta tokens that lost to novelty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import sttm
from sttm.merging import METHODS
from sttm.merging.merger import TokenMerger
from sttm.merging.ops import linear, standardised, take
from sttm.merging.reducer import Reduced
from sttm.merging.selectors import SELECTORS, StrideSelector, regular_picks

SOFT = 0.1
NEEDS_TRAINING = ("sttm", "patchmerger", "tokenlearner")


class WithoutMotion(TokenMerger):
    """Slots are averages and nothing more, as off the shelf."""

    def _motion(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        return z_BFMC


class SureOrNot(TokenMerger):
    """A place on a path counts in full, however unsure."""

    def _path(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        path_BFMT2, sure_BFMT1 = super()._path(*given)
        return path_BFMT2, torch.ones_like(sure_BFMT1)


class SelectionOnly(TokenMerger):
    """Slots are their meta tokens, and all other tokens are dropped."""

    def _shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        return torch.zeros_like(cosine_BFML).scatter(3, meta_BFM[..., None], 1.0)


class Soft(TokenMerger):
    """Tokens spread themselves over the objects, by the softmax of their cosines over SOFT."""

    def _shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        return (cosine_BFML / SOFT).softmax(2)


class Residual(TokenMerger):
    """Slots start as their meta tokens, bit for bit; a linear map, zero at first, adds what was fused."""

    def setup(self) -> None:
        super().setup()
        self.appearance = nn.Linear(self.dim, self.dim)
        nn.init.zeros_(self.appearance.weight)
        nn.init.zeros_(self.appearance.bias)

    def reduce(self, x_BFLC: Tensor, *others: Any) -> Reduced:
        reduced = super().reduce(x_BFLC, *others)
        return replace(reduced, x_BWOC=take(x_BFLC, reduced.meta_BWK) + reduced.x_BWOC)

    def _motion(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        added_BFMC = linear(self.appearance, standardised(z_BFMC)).to(z_BFMC.dtype)
        return super()._motion(added_BFMC, path_BFMT2, size_BFM)

    def macs(self, frames: int, tokens: int) -> int:
        return super().macs(frames, tokens) + self.frames * self.tokens * self.dim**2


class CoverageFinder(StrideSelector):
    """Half of the meta tokens on a regular stride, the other half where those represent the window worst."""

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        seeds = (self.count + 1) // 2
        seed_BFM = self.order(position_BFL3)[..., regular_picks(x_BFLC.shape[2], seeds)]
        unit_BFLC = nn.functional.normalize(x_BFLC, dim=-1)
        covered_BFL = (unit_BFLC @ take(unit_BFLC, seed_BFM).transpose(-1, -2)).amax(-1)
        worst_BFM = covered_BFL.scatter(-1, seed_BFM, 4.0).topk(self.count - seeds, dim=-1, largest=False).indices
        return torch.cat((seed_BFM, worst_BFM), dim=-1)

    def macs(self, windows: int, length: int, width: int) -> int:
        return super().macs(windows, length, width) + windows * length * ((self.count + 1) // 2) * width


class RandomFinder(StrideSelector):
    """Meta tokens at random while training, on a regular stride in testing."""

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        if not self.training:
            return super().pick(x_BFLC, position_BFL3)
        return torch.rand(x_BFLC.shape[:-1], device=x_BFLC.device).topk(self.count).indices


class SaliencyFinder(StrideSelector):
    """Meta tokens by a learned score, with Gumbel noise while training; `gate` is one and carries the gradient to it.

    Source: Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017; Kool, van Hoof, Welling,
    "Stochastic Beams and Where to Find Them", ICML 2019 (Gumbel top-k).
    """

    gate_BFM: Tensor

    def __init__(self, dim: int, count: int, length: int | None = None) -> None:
        super().__init__(count, length)
        self.score = nn.Linear(dim, 1)

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        score_BFL = linear(self.score, x_BFLC).squeeze(-1)
        uniform_BFL = torch.rand_like(score_BFL).clamp(1e-6, 1 - 1e-6) if self.training else torch.tensor(0.5)
        meta_BFM = (score_BFL - torch.log(-torch.log(uniform_BFL))).topk(self.count, dim=-1).indices
        gate_BFM = torch.sigmoid(score_BFL.gather(-1, meta_BFM)).clamp(min=1e-4)
        self.gate_BFM = gate_BFM / gate_BFM.detach()
        return meta_BFM

    def macs(self, windows: int, length: int, width: int) -> int:
        return super().macs(windows, length, width) + windows * length * width


class Saliency(TokenMerger):
    """Meta tokens by a learned score."""

    def setup(self) -> None:
        super().setup()
        self.selector = SaliencyFinder(self.dim, self.tokens, self.length)

    def _motion(self, z_BFMC: Tensor, path_BFMT2: Tensor, size_BFM: Tensor) -> Tensor:
        gate_BFM1 = self.selector.gate_BFM[..., None].to(z_BFMC.dtype)
        return super()._motion(z_BFMC * gate_BFM1, path_BFMT2, size_BFM)


class SizesUnweighed(TokenMerger):
    """Every slot counts alike in attention and pooling."""

    spec = replace(TokenMerger.spec, sized=False)


#: Mergers that differ, spec and arguments of sttm.apply that do.
MERGERS: dict[str, type[TokenMerger]] = {
    "without motion": WithoutMotion,
    "sure or not": SureOrNot,
    "selection only": SelectionOnly,
    "soft": Soft,
    "residual": Residual,
    "saliency": Saliency,
    "sizes unweighed": SizesUnweighed,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "within a frame": {"window": 1},
    "over time only": {"window": 2, "layers": [0], "selector": "first frame"},
    "window of the clip": {"window": 4},
    "before block 0": {"layers": [0]},
    "before block 1": {"layers": [1]},
    "before blocks 1, 2, 3": {"layers": [1, 2, 3]},
    "stride": {"selector": "stride"},
    "coverage": {"selector": "coverage"},
    "random": {"selector": "random"},
}


class FirstFrameFinder(StrideSelector):
    """The tokens of the first of two frames, on a regular stride; where more are asked for, some of the second."""

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        first = max(self.count, position_BFL3.shape[2] // 2)
        return self.order(position_BFL3)[..., regular_picks(first, self.count)]


SELECTORS |= {"coverage": CoverageFinder, "random": RandomFinder, "first frame": FirstFrameFinder}
METHODS |= {f"sttm, {name}": merger for name, merger in MERGERS.items()}


def put_in(model: nn.Module, method: str, compute: float, variant: str, *, learned: bool = True) -> None:
    """Puts a method into a model, in that variant."""
    if method == "plain":
        return
    name = f"{method}, {variant}" if variant in MERGERS else method
    learned = learned and method in NEEDS_TRAINING
    sttm.apply(model, compute=compute, method=name, learned=learned, **ARGUMENTS.get(variant, {}))
