"""`sttm synth`."""


def test_synth_makes_videos_that_decode(sttm, tmp_path):
    outcome = sttm("synth", tmp_path / "made", "--clips", 20, "--size", 32, "--frames", 8, "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "made").rglob("*.mp4"))) == 20
