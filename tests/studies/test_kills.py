"""`sttm batch` on Ray, killed twice: no row is lost, none is there twice, and none differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import kills


@pytest.mark.extended
@pytest.mark.timeout(1200)
def test_two_kills_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra batch brings ray")
    counts = kills.run(tmp_path, 2, 18, 0, ["driver", "decoding actor"])
    assert counts["kills"] == 2 and counts["rows_expected"] >= 20
    assert not any(counts[name] for name in ("runs_that_hang", "rows_lost", "rows_twice", "rows_that_differ")), counts
