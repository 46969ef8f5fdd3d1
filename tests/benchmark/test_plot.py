"""What the plot of `sttm bench` shows: a line for each method or variant, from the figures of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sttm.benchmark import plot
from sttm.errors import SttmError

pytest.importorskip("matplotlib")


def row(method: str, compute: float, speed: float, **other: Any) -> dict[str, Any]:
    facts = {"model": "m", "batch": 1, "dtype": "fp32", "mode": "eager"} | other
    return facts | {"method": method, "compute": compute, "macs": int(compute * 10e9), "clips_per_s": speed}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw rows, and return each panel's lines: label -> points."""
    figures: list[Any] = []
    save = plot._save

    def kept(figure: Any, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plot, "_save", kept)

    def draw(rows: list[dict[str, Any]]) -> list[dict[str, list[tuple[float, float]]]]:
        plot.plot(tmp_path / "a.png", rows, "two cores")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
        return [
            {str(line.get_label()): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines}
            for axes in figures[-1].axes
        ]

    return draw


def test_over_multiply_adds_methods_start_at_plain(drawn: Any) -> None:
    rows = [row("plain", 1, 2.0), row("sttm", 0.5, 4.0), row("sttm", 0.8, 2.5), row("tome", 0.5, 3.0)]
    (lines,) = drawn(rows)
    assert lines["sttm"] == [(5, 4.0), (8, 2.5), (10, 2.0)] and lines["tome"] == [(5, 3.0), (10, 2.0)]
    assert lines["plain"] == [(10, 2.0)]
    both = drawn(rows + [{**each, "dtype": "bf16", "clips_per_s": 9.0} for each in rows])
    assert {"sttm, eager fp32", "sttm, eager bf16", "tome, eager bf16"} < both[0].keys()


def test_over_the_batch_each_variant_is_a_line_and_each_model_a_panel(drawn: Any) -> None:
    variants = (("plain", 1, 2.0), ("sttm", 0.5, 3.0))
    rows = [row(name, compute, speed * batch, batch=batch, model=model)
            for model in "mn" for batch in (8, 1) for name, compute, speed in variants]  # fmt: skip
    assert drawn(rows) == [{"plain": [(1, 2.0), (8, 16.0)], "sttm 0.50": [(1, 3.0), (8, 24.0)]}] * 2


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SttmError, match="No space left"):
        plot.plot(tmp_path / "a.png", [row("plain", 1, 2.0)], "two cores")
    assert not list(tmp_path.iterdir())
