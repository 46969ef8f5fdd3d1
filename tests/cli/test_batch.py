"""`sttm batch`: usage that is refused at once; tests/corpus/ and tests/studies/test_kills.py run it."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("absent rows", "absent does not exist; give a folder, a list, a parquet of paths, or tar shards"),
        (". rows --method tome", "--method tome says how to merge but not how much"),
        (". rows --features poled", "is not one of 'none', 'pooled', 'slots'; did you mean pooled?"),
        (". rows --views 2x2", "views=2x2 is not TxS"),
        (". rows --read-seconds nan", "a time limit of nan s is not between 0.1 s and a day"),
        (". rows --part 12", "--part 12 is not a multiple of the 8 videos of one batch; give, say, 8"),
        (". rows", ". holds no video file; give a folder that does, a list, or tar shards"),
        ("my.mp4 rows", "my.mp4 is one video; give a folder, a list or shards, or use sttm predict"),
    ],
)
def test_mistakes_are_one_sentence(sttm, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    if args.startswith("my.mp4"):
        (tmp_path / "my.mp4").touch()
    outcome = sttm("batch", *args.split(), "--model", "sttm-motion")
    assert outcome.code == 2 and not outcome.out
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1 and said in outcome.err
    assert not (tmp_path / "rows" / "manifest.json").exists()
