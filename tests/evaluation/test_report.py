"""The plot of the confusion matrix."""

import numpy as np
import pytest

from sttm.evaluation.metrics import Confusion
from sttm.evaluation.report import Evaluation, draw


@pytest.mark.parametrize("classes", [1, 6, 400])
def test_confusion_is_drawn_for_few_and_for_many(tmp_path, classes):
    counts = np.eye(classes + 1, dtype=np.int64)
    counts[0, -1], counts[-1, -1] = 2, 0  # one class that only occurs as an answer
    labels = tuple(f"$class_{number}" * 4 for number in range(classes + 1))
    draw(Evaluation(labels, Confusion(counts), (), (), 1.0), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000
