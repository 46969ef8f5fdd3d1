"""`sttm batch` on Ray, killed twice: no row is lost, none is there twice, none differs, none is made again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest


@pytest.mark.extended
@pytest.mark.timeout(1200)
def test_two_kills_lose_nothing(study, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra batch brings ray")
    kills = study("kills")
    corpus = kills.Corpus(tmp_path, random.Random(0))
    counts = kills.run(corpus, 2, 18, ["driver", "decoding actor"])
    assert counts["kills"] == 2 and counts["rows_expected"] >= 23 and counts["faults"]["a second run"] >= 1
    assert not any(counts[name] for name in kills.ZERO), counts
