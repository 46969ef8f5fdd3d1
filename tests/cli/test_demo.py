"""`sttm demo`."""

import json


def test_demo_hands_its_options_on(sttm, monkeypatch, tmp_path):
    def run(folder, *, clips, seed, advance):
        advance(1, 2)
        assert (folder, clips, seed) == (tmp_path, 30, 7)
        return {"report": "somewhere/report.html"}

    monkeypatch.setattr("sttm.visual.demo.run", run)
    monkeypatch.setattr("sttm.visual.demo.tables", lambda _: ["synthetic table", "real table"])
    assert json.loads(sttm("demo", tmp_path, "--clips", 30, "--seed", 7, "--json").out)
    outcome = sttm("demo", tmp_path, "--clips", 30, "--seed", 7)
    assert outcome.code == 0
    for text in ("synthetic table\n", "real table\n", "somewhere/report.html"):
        assert text in outcome.out
