"""Mixup and cutmix of pairs of clips: a box is cut in height and width, never in time, the same in all frames.

Legend: B clips, T frames, C colours, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sttm.config.sections import AugmentSettings


def mixup_pairs(
    pixels_BTCHW: Tensor,
    targets_BK: Tensor,
    weight_B: Tensor,
    rngs: Sequence[np.random.Generator],
    settings: AugmentSettings,
) -> None:
    """Mix clips 2k and 2k+1 with each other, in place, with one random generator a pair.

    With both alphas set, each pair takes mixup or cutmix with equal probability. A pair with an unreadable clip is
    not mixed.
    """
    assert len(pixels_BTCHW) == 2 * len(rngs), (len(pixels_BTCHW), len(rngs))
    for k, rng in enumerate(rngs):
        pair = slice(2 * k, 2 * k + 2)
        if weight_B[pair].min() == 0:
            continue
        cuts = rng.random() < 0.5 if settings.mixup > 0 and settings.cutmix > 0 else settings.cutmix > 0
        alpha = settings.cutmix if cuts else settings.mixup
        share = float(rng.beta(alpha, alpha))
        if cuts:
            share = _cut(pixels_BTCHW[pair], share, rng)
        else:
            _blend(pixels_BTCHW[pair], share)
        _blend(targets_BK[pair], share)


def _blend(pair: Tensor, share: float) -> None:
    """Replace each of two by `share` of itself plus the rest of the other, in place."""
    pair.copy_(share * pair + (1 - share) * pair.flip(0))


def _cut(pair_2TCHW: Tensor, share: float, rng: np.random.Generator) -> float:
    """Swap a box of about 1 - share of the area between two clips; return the exact share that stays."""
    *_, height, width = pair_2TCHW.shape
    half = (1 - share) ** 0.5 / 2
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    top, bottom = (int(np.clip(round(y + side * half * height), 0, height)) for side in (-1, 1))
    left, right = (int(np.clip(round(x + side * half * width), 0, width)) for side in (-1, 1))
    box = pair_2TCHW[..., top:bottom, left:right]
    box.copy_(box.flip(0).clone())
    return 1 - (bottom - top) * (right - left) / (height * width)
