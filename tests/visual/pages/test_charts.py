"""Charts: what is drawn is what was counted."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from sttm.evaluation.metrics import Accuracy, Confusion
from sttm.visual.pages.charts import Point, accuracy_chart, confusion_chart


def test_points_and_intervals_lie_where_their_figures_are():
    plain, merged = Point("<plain>", 2.0, Accuracy(80, 100)), Point("merged", 1.0, Accuracy(70, 100))
    svg = ElementTree.fromstring(accuracy_chart([plain, merged]))
    ticks = {str(t.text): float(t.get("y", 0)) - 4 for t in svg.iter("text") if str(t.text).endswith(" %")}
    (a, ya), (b, yb) = (sorted((float(k.split()[0]) / 100, y) for k, y in ticks.items()))[:: len(ticks) - 1]

    def share(y: float) -> float:
        return a + (y - ya) / (yb - ya) * (b - a)

    (circle,) = svg.iter("circle")
    bars = [re.findall(r"[\d.]+", p.get("d", "")) for p in svg.iter("path") if (p.get("class") or "").startswith("bar")]
    assert share(float(circle.get("cy", 0))) == pytest.approx(0.8, abs=0.003)
    for point, (_, low, high) in zip((plain, merged), bars, strict=True):
        wanted = pytest.approx(point.accuracy.interval, abs=0.003)
        assert (share(float(low)), share(float(high))) == wanted
    zero, two = (next(float(t.get("x", 0)) for t in svg.iter("text") if t.text == text) for text in ("0", "2"))
    assert float(circle.get("cx", 0)) == pytest.approx(two, abs=0.2)
    assert float(bars[1][0]) == pytest.approx((zero + two) / 2, abs=0.2)


def test_cells_hold_the_counts_and_the_most_frequent_confusions_are_told():
    counts_KK = np.array([[5, 2, 0, 1], [0, 7, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])
    html = confusion_chart(["ant", "<bee>", "cat", "dog"], Confusion(counts_KK))
    svg, _, words = html.partition("</svg>")
    titles = [str(t.text) for t in ElementTree.fromstring(svg + "</svg>").iter("title")]
    assert sorted(titles) == sorted([
        "ant: 5 of 8 taken for ant", "ant: 2 of 8 taken for <bee>", "ant: 1 of 8 taken for any other class",
        "<bee>: 7 of 7 taken for <bee>", "cat: 3 of 7 taken for ant", "cat: 4 of 7 taken for cat",
    ])  # fmt: skip
    assert re.findall("<li>(.*?)</li>", words) == [
        "cat: 3 of 7 taken for ant", "ant: 2 of 8 taken for &lt;bee&gt;", "ant: 1 of 8 taken for dog",
    ]  # fmt: skip


def test_many_classes_still_fit_into_one_chart():
    html = confusion_chart([f"class {n}" for n in range(400)], Confusion(np.eye(400, dtype=np.int64)))
    assert html.count("<rect") == 400 and "<text" not in html and "No confusions" in html
