"""The plot of the confusion matrix; files that are written all or not at all."""

import numpy as np
import pytest

from sttm.evaluation import report
from sttm.evaluation.metrics import Confusion
from sttm.evaluation.report import Evaluation, draw


@pytest.mark.parametrize("classes", [1, 6, 400])
def test_confusion_is_drawn_for_few_and_for_many(tmp_path, classes):
    counts = np.eye(classes + 1, dtype=np.int64)
    counts[0, -1], counts[-1, -1] = 2, 0  # one class that only occurs as an answer
    labels = tuple(f"$class_{number}" * 4 for number in range(classes + 1))
    draw(Evaluation(labels, Confusion(counts), (), (), 1.0), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def test_a_disk_that_fills_leaves_the_files_of_the_evaluation_before(tmp_path, monkeypatch):
    evaluation = Evaluation(("a", "b"), Confusion(np.eye(2, dtype=np.int64)), (), (), 1.0)
    report.write(evaluation, tmp_path, {"run": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"summary.json", "predictions.csv", "per_class.csv", "confusion.png"}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "draw", full)
    with pytest.raises(OSError, match="No space"):
        report.write(evaluation, tmp_path, {"run": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
