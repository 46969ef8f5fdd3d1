"""Requests that no browser would send, a few of those of `tests.fuzz.page`: each is answered or refused."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra serve brings gradio")
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]


@pytest.mark.extended
def test_odd_slow_and_many_requests_are_answered_or_refused(served, small_model: Path, clips: Path):
    from tests.fuzz.page import run
    from tests.fuzz.requests import Page

    address, uploads = served
    page = Page(address, uploads, small_model.name, (str(small_model), sys.prefix))
    counts = run(page, (clips / "a.mp4").read_bytes(), 0, requests=60, uploads=20, slow=3)
    assert not counts["faults"]
    assert counts["too large: refused"] == 1
    # One is classified at a time and 16 wait: with the one that just ended, at most a few more are answered.
    assert counts["at once: answered"] >= 16 and counts["at once: answered"] + counts.get("at once: refused", 0) == 20


def test_a_path_that_was_never_uploaded_and_json_that_is_no_text_are_refused_without_a_word_of_the_machine(served):
    from tests.fuzz.requests import API, Page

    address, uploads = served
    page = Page(address, uploads, "m", (str(Path.cwd()),))
    file = {"path": "~/.ssh/id_rsa", "meta": {"_type": "gradio.FileData"}}
    said = page.classify(json.dumps({"data": [file, "m", "sttm", 0.6]}).encode())
    assert b"event: error" in said.body and b"this is no request of this page" in said.body and not page.fault(said)
    for body in (b'"\\ud800"', b'{"data": [], "fn_index": 99, "session_hash": "x"}'):
        answer = page.ask("POST", f"{API}/queue/join", body)
        assert answer.status == 422 and b"this is no request of this page" in answer.body


def test_a_form_without_a_file_and_the_stream_of_a_session_that_is_none_are_refused_and_end(served):
    from tests.fuzz.requests import API, BOUNDARY, Page, multipart

    address, uploads = served
    page = Page(address, uploads, "m", ())
    form = multipart(b"x", "clip.mp4").replace(b'; filename="clip.mp4"', b"")
    answer = page.ask("POST", f"{API}/upload", form, f"multipart/form-data; boundary={BOUNDARY}")
    assert answer.status == 422 and b"this is no request of this page" in answer.body
    assert b"session_not_found" in page.ask("GET", f"{API}/queue/data?session_hash=none").body


@pytest.mark.parametrize(
    ("error", "started", "status"), [(TypeError("x"), False, 422), (OSError(28, "full"), False, 500),
                                     (RuntimeError("x"), True, 200)],
)  # fmt: skip
def test_a_fault_of_the_server_is_a_sentence_or_the_end_of_a_stream(
    error: Exception, started: bool, status: int, caplog: pytest.LogCaptureFixture
):
    import asyncio

    from sttm.serving.app import Faults

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def request() -> None:
        await Faults(failing)({"type": "http", "method": "GET"}, None, send)

    with ThreadPoolExecutor(1) as pool:  # the browser's driver has a loop of its own in this thread
        pool.submit(asyncio.run, request()).result()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == status and not sent[1].get("more_body")
    assert started or b"request" in sent[1]["body"]
    assert caplog.messages == [f"a request of the page failed: {type(error).__name__}"]


def test_an_answer_that_shows_the_machine_is_a_fault(tmp_path: Path):
    from tests.fuzz.requests import Answer, Page

    page = Page("http://127.0.0.1:1", tmp_path / "uploads", "m", (str(tmp_path),))
    assert page.fault(Answer(200, f"{tmp_path}/model".encode())) and page.fault(Answer(500, b""))
    assert page.fault(Answer(422, b"Traceback (most recent call last)")) and page.fault(Answer(200, b"root:x:0:0"))
    assert page.fault(Answer(0, b"")) and not page.fault(Answer(503, b"Queue is full"))
    assert not page.fault(Answer(200, f"{tmp_path}/uploads/clip.mp4".encode()))
