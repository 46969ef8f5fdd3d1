"""Variants of the merger for the ablation, and the selectors of meta tokens that lost to novelty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import sttm
from sttm.backbones import backbone_of
from sttm.merging import METHODS
from sttm.merging.merger import TokenMerger
from sttm.merging.motion import Motion
from sttm.merging.ops import averages_by_share, linear, standardised, take
from sttm.merging.reduced import Reduced
from sttm.merging.reducer import TokenReducer
from sttm.merging.selectors import SELECTORS, StrideSelector, regular_picks
from sttm.merging.spec import MethodSpec
from sttm.patching.api import install
from sttm.patching.plan import MergerPlan, count_macs
from sttm.patching.schedule import make_plan

SOFT = 0.1
NEEDS_TRAINING = ("sttm", "patchmerger", "tokenlearner")


class UncertainMotion(Motion):
    """Weigh every point of a path alike, however uncertain it is."""

    def certainty(self, variance_BWOT1: Tensor, alike_BTRS: Tensor, likeness_BTRS: Tensor) -> Tensor:
        return torch.ones_like(variance_BWOT1)


class WithoutConfidence(TokenMerger):
    """Weigh every point of a path alike, however uncertain it is."""

    motion_type = UncertainMotion


class ByShares(TokenMerger):
    """A base of variants that give each slot a share of each token."""

    def fuse(
        self, x_BFLC: Tensor, size_BFL: Tensor, position_BFL3: Tensor, meta_BFM: Tensor, cosine_BFML: Tensor
    ) -> Reduced:
        share_BFML = self.shares(cosine_BFML, meta_BFM)
        size_BFM, (z_BFMC, centroid_BFM3) = averages_by_share(share_BFML, size_BFL, x_BFLC, position_BFL3)
        return Reduced(z_BFMC, size_BFM, centroid_BFM3, share_BWOL=share_BFML)

    def shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        raise NotImplementedError


class SelectionOnly(ByShares):
    """Keep the meta tokens and drop all other tokens."""

    def shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        return torch.zeros_like(cosine_BFML).scatter(3, meta_BFM[..., None], 1.0)


class Soft(ByShares):
    """Assign tokens softly: the softmax of their cosines over SOFT."""

    def shares(self, cosine_BFML: Tensor, meta_BFM: Tensor) -> Tensor:
        return (cosine_BFML / SOFT).softmax(2)


class Residual(TokenMerger):
    """Start slots as their meta tokens; a linear map that starts at zero adds the fused tokens."""

    def setup(self) -> None:
        super().setup()
        self.appearance = nn.Linear(self.dim, self.dim)
        nn.init.zeros_(self.appearance.weight)
        nn.init.zeros_(self.appearance.bias)

    def reduce(self, x_BFLC: Tensor, *others: Any) -> Reduced:
        reduced = super().reduce(x_BFLC, *others)
        added_BFMC = linear(self.appearance, standardised(reduced.x_BWOC)).to(x_BFLC.dtype)
        return replace(reduced, x_BWOC=take(x_BFLC, reduced.meta_BWK) + added_BFMC)

    def macs(self, frames: int, tokens: int) -> int:
        return super().macs(frames, tokens) + self.frames * self.tokens * self.dim**2


class CoverageSelector(StrideSelector):
    """Choose half of the meta tokens on a regular stride, the others where those represent the window worst."""

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        seeds = (self.count + 1) // 2
        seed_BFM = self.order(position_BFL3)[..., regular_picks(x_BFLC.shape[2], seeds)]
        unit_BFLC = nn.functional.normalize(x_BFLC, dim=-1)
        covered_BFL = (unit_BFLC @ take(unit_BFLC, seed_BFM).transpose(-1, -2)).amax(-1)
        worst_BFM = covered_BFL.scatter(-1, seed_BFM, 4.0).topk(self.count - seeds, dim=-1, largest=False).indices
        return torch.cat((seed_BFM, worst_BFM), dim=-1)

    def macs(self, windows: int, length: int, width: int) -> int:
        return super().macs(windows, length, width) + windows * length * ((self.count + 1) // 2) * width


class RandomSelector(StrideSelector):
    """Choose meta tokens at random in training, on a regular stride in evaluation."""

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        if not self.training:
            return super().pick(x_BFLC, position_BFL3)
        return torch.rand(x_BFLC.shape[:-1], device=x_BFLC.device).topk(self.count).indices


class SaliencySelector(StrideSelector):
    """Choose meta tokens by a learned score, with Gumbel noise in training; `gate_BFM` is 1 and carries the gradient.

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
    """Choose meta tokens by a learned score."""

    def setup(self) -> None:
        super().setup()
        self.selector = SaliencySelector(self.dim, self.tokens, self.length)

    def reduce(self, x_BFLC: Tensor, *others: Any) -> Reduced:
        reduced = super().reduce(x_BFLC, *others)
        return replace(reduced, x_BWOC=reduced.x_BWOC * self.selector.gate_BFM[..., None].to(x_BFLC.dtype))


class WithoutSizeWeights(TokenMerger):
    """Weigh every slot alike in attention and pooling."""

    spec = replace(TokenMerger.spec, sized=False)


#: Variants that are a merger of their own; below, those that are arguments of sttm.apply.
MERGERS: dict[str, type[TokenMerger]] = {
    "no-path-confidence": WithoutConfidence,
    "selection-only": SelectionOnly,
    "soft": Soft,
    "residual": Residual,
    "saliency": Saliency,
    "no-size-weights": WithoutSizeWeights,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "no-motion": {"motion": False},
    "blocks-1-2": {"layers": [1, 2]},
    "space-only": {"window": 1},
    "time-only": {"window": 2, "layers": [0], "selector": "first frame"},
    "clip-window": {"window": 4},
    "block-0": {"layers": [0]},
    "block-1": {"layers": [1]},
    "blocks-1-2-3": {"layers": [1, 2, 3]},
    "stride": {"selector": "stride"},
    "coverage": {"selector": "coverage"},
    "random-selector": {"selector": "random"},
}


class FirstFrameSelector(StrideSelector):
    """Choose tokens of the first of two frames, on a regular stride; where more are asked for, some of the second."""

    def pick(self, x_BFLC: Tensor, position_BFL3: Tensor) -> Tensor:
        first = max(self.count, position_BFL3.shape[2] // 2)
        return self.order(position_BFL3)[..., regular_picks(first, self.count)]


SELECTORS |= {"coverage": CoverageSelector, "random": RandomSelector, "first frame": FirstFrameSelector}
METHODS |= {f"sttm, {name}": merger for name, merger in MERGERS.items()}


class KeepAll(TokenReducer):
    """Merge nothing: a plain model can have the motion feature by it."""

    name = "plain, motion"
    spec = MethodSpec()

    def reduce(self, x_BWLC: Tensor, size_BWL: Tensor, position_BWL3: Tensor, prefix_BPC: Tensor | None) -> Reduced:
        every_L = torch.arange(x_BWLC.shape[2], device=x_BWLC.device)
        return Reduced(x_BWLC, size_BWL, position_BWL3, meta_BWK=every_L.expand(x_BWLC.shape[:3]))


METHODS[KeepAll.name] = KeepAll


def put_in(model: nn.Module, method: str, compute: float, variant: str, *, learned: bool = True) -> None:
    """Put a method into a model, in a variant of it; plain stays as it is, but for the motion feature."""
    if method == "plain" and variant == "motion":
        _put_motion_in(model, compute)
    if method == "plain":
        return
    name = f"{method}, {variant}" if variant in MERGERS else method
    learned = learned and method in NEEDS_TRAINING
    options = dict(motion=True) if variant == "motion" else ARGUMENTS.get(variant, {})
    sttm.apply(model, compute=compute, method=name, learned=learned, **options)


def _put_motion_in(model: nn.Module, compute: float) -> None:
    """Give all tokens of a plain model the motion feature, before the blocks where STTM merges at that compute."""
    backbone = backbone_of(model)
    merged = make_plan(backbone, model, compute, learned=True)
    grid = backbone.grid(model, merged.clip_shape)
    kept = [MergerPlan(m.layer, grid.frames, grid.tokens, grid.frames, grid.tokens) for m in merged.mergers]
    plan = replace(merged, method=KeepAll.name, selector=None, mergers=tuple(kept))
    macs = count_macs(backbone, model, plan, kept)
    install(model, replace(plan, macs_after=macs, compute=macs / plan.macs_before))
