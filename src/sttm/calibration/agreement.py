"""How well the answers of a merged model agree with those of the plain one; no labels are needed.

Legend: N clips, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


@dataclass(frozen=True)
class Agreement:
    """How well the answers of a merged model agree with those of the plain one."""

    distance: float
    """Mean squared distance of the logits from the plain model's over the variance of these, less each clip's mean."""
    kl: float
    """Mean KL divergence of the class probabilities from the plain model's, in nats."""
    top1: float
    """Share of clips on which both name the same class."""

    @classmethod
    def of(cls, plain_NK: Tensor, merged_NK: Tensor) -> Agreement:
        """Compare the logits of the same clips."""
        kl = kl_div(log_softmax(merged_NK, -1), log_softmax(plain_NK, -1), reduction="batchmean", log_target=True)
        same_N = merged_NK.argmax(-1) == plain_NK.argmax(-1)
        distance, kl = (x.nan_to_num(nan=torch.inf) for x in (distances(plain_NK, merged_NK).mean(), kl))
        return cls(float(distance), float(kl), float(same_N.double().mean()))


def distances(plain_NK: Tensor, merged_NK: Tensor) -> Tensor:
    """Return the distance of each clip's logits, which candidates are compared by: [N].

    A few clips rank plans by it more truly than by a divergence of probabilities, which a few confident clips decide,
    or by the classes alone, which most clips do not change (results/calibrate/metrics.md).
    """
    plain_NK, merged_NK = (logits_NK - logits_NK.mean(-1, keepdim=True) for logits_NK in (plain_NK, merged_NK))
    return (plain_NK - merged_NK).square().mean(-1) / plain_NK.square().mean()
