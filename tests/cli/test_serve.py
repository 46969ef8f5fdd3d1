"""`sttm serve`; the page itself is tested in tests/serving."""

import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("gradio", reason="the extra serve brings gradio")


def test_it_serves_until_it_is_stopped(sttm, small_model, monkeypatch):
    @contextmanager
    def serving(engine, port):
        assert list(engine.names) == [small_model.name] and port == 7999
        assert (engine.limits.megabytes, engine.limits.seconds) == (5, 9)
        yield "http://127.0.0.1:7999"

    monkeypatch.setattr("sttm.serving.app.serving", serving)
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: True)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    limits = ["--megabytes", 5, "--seconds", 9]
    outcome = sttm("serve", "--model", small_model, "--port", 7999, *limits)
    assert outcome.code == 0 and "http://127.0.0.1:7999; Ctrl-C ends it" in outcome.err


def test_mistakes_are_one_sentence(sttm, monkeypatch):
    outcome = sttm("serve", "--model", "sttm-wrods")
    assert outcome.code == 2 and "did you mean sttm-words?" in outcome.err and outcome.err.count("\n") == 1
    monkeypatch.setattr("sttm.cli.serve.find_spec", lambda name: None)
    outcome = sttm("serve")
    assert outcome.code == 2 and "pip install 'sttm[serve]'" in outcome.err and outcome.err.count("\n") == 1
