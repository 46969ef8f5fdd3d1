"""Agreement: what is compared of two sets of logits."""

from __future__ import annotations

import pytest
import torch

from sttm.calibration import Agreement, distances


def test_agreement_is_by_logits_classes_and_probabilities() -> None:
    plain = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    merged = torch.tensor([[2.0, 0.0, 1.0], [1.0, 0.0, 0.0]]) + torch.tensor([[5.0], [-1.0]])
    found = Agreement.of(plain, merged)
    p, q = plain[1].softmax(0), merged[1].softmax(0)
    assert found.top1 == 0.5
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum()) / 2)
    # What a clip's logits have in common changes no answer, and no distance.
    spread, apart = torch.tensor([[1.0, -1, 0], [-1, 2, -1]]), torch.tensor([5 / 3, -7 / 3, 2 / 3])
    assert distances(plain, merged).tolist() == pytest.approx(
        [0.0, float(apart.square().mean() / spread.square().mean())]
    )
    assert found.distance == pytest.approx(float(distances(plain, merged).mean()))
