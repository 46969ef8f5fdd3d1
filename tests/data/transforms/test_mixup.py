"""Mixup and cutmix: targets are the shares of the pixels, and pairs are independent."""

import numpy as np
import pytest
import torch

from sttm.config.sections import AugmentSettings
from sttm.data.transforms.mixup import mixup_pairs


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def batch(num_pairs: int = 3, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(2 * num_pairs, 4, 3, 20, 30, generator=random)
    return pixels, torch.eye(2 * num_pairs), torch.ones(2 * num_pairs)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=str)
def test_mixed_targets_sum_to_one_and_tell_what_the_pixels_hold(settings):
    for seed in range(10):
        pixels, targets, weight = batch(seed=seed)
        before = pixels.clone()
        mixup_pairs(pixels, targets, weight, [rng(3 * seed + k) for k in range(3)], AugmentSettings(**settings))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        for i in range(6):
            share, other = float(targets[i, i]), i ^ 1
            assert targets[i, other] == pytest.approx(1 - share, abs=1e-6)
            foreign_THW = (pixels[i] == before[other]).all(1)
            if foreign_THW.any() or torch.equal(pixels[i], before[i]):  # cut: a box, the same in all frames
                assert (foreign_THW == foreign_THW[0]).all()
                kept_THW = (pixels[i] == before[i]).all(1)
                assert (kept_THW ^ foreign_THW).all()
                assert float(kept_THW.float().mean()) == pytest.approx(share, abs=1e-6)
            else:
                torch.testing.assert_close(pixels[i], share * before[i] + (1 - share) * before[other])


def test_cutmix_cuts_one_box_of_the_drawn_area():
    shares = []
    for seed in range(300):
        pixels, targets, weight = batch(1, seed)
        before = pixels.clone()
        mixup_pairs(pixels, targets, weight, [rng(seed)], AugmentSettings(cutmix=1.0))
        foreign_HW = (pixels[0, 0] == before[1, 0]).all(0)
        rows, columns = foreign_HW.any(1).nonzero()[:, 0], foreign_HW.any(0).nonzero()[:, 0]
        if len(rows):
            assert foreign_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert torch.equal((pixels[1, 0] == before[0, 0]).all(0), foreign_HW)
        shares.append(float(targets[0, 0]))
        drawn = float(rng(seed).beta(1, 1))
        touches = len(rows) == 0 or rows[0] == 0 or columns[0] == 0 or rows[-1] == 19 or columns[-1] == 29
        assert shares[-1] > drawn - 0.06 if touches else shares[-1] == pytest.approx(drawn, abs=0.06)  # whole pixels
    assert min(shares) < 0.3 and 0.55 < np.mean(shares) < 0.8  # 1/2 on average, more as boxes reach over the rim


def test_both_mixup_and_cutmix_are_used_and_pairs_differ():
    kinds = []
    for seed in range(40):
        pixels, targets, weight = batch(1)
        before = pixels.clone()
        mixup_pairs(pixels, targets, weight, [rng(seed)], AugmentSettings(mixup=1.0, cutmix=1.0))
        kinds.append(bool((pixels[0] == before[0]).any()))
    assert 8 < sum(kinds) < 32
    pixels, targets, weight = batch(2)
    mixup_pairs(pixels, targets, weight, [rng(0), rng(1)], AugmentSettings(mixup=1.0))
    assert targets[0, 0] != targets[2, 2]


def test_an_unreadable_clip_is_not_mixed_into_a_good_one():
    pixels, targets, weight = batch(2)
    weight[1] = 0
    before = pixels.clone()
    mixup_pairs(pixels, targets, weight, [rng(0), rng(1)], AugmentSettings(mixup=1.0))
    assert torch.equal(pixels[:2], before[:2]) and torch.equal(targets[:2], torch.eye(4)[:2])
    assert not torch.equal(pixels[2:], before[2:])
