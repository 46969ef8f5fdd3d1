"""The page in a real browser, and its API: nothing is fetched from elsewhere, a bad file harms nobody."""

from __future__ import annotations

import io
import os
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import av
import pytest

from sttm.errors import SttmError
from sttm.serving.engine import Engine
from tests.helpers import ROOT

pytest.importorskip("gradio", reason="the extra serve brings gradio")
# What gradio and its server still call is deprecated; files of theirs are closed late.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]


def focus(page, where: str) -> None:
    """Press Tab until what a selector names, or something in it, has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("s => !!document.activeElement.closest(s)", where):
            return
    pytest.fail(f"Tab never reaches {where}")


@pytest.fixture
def opened(browser, served) -> Iterator[Callable[[int], object]]:
    """Return what opens the page at a width; in the end no request went elsewhere and no script failed."""
    pages, asked, wrong = [], [], []

    def opening(width: int):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(120_000)  # milliseconds: the machine may be busy, and a test ends at 300 seconds
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(served[0])
        for part in ("#video button", "#compute input[type=range]", "#classify"):
            page.wait_for_selector(part)
        page.wait_for_load_state("networkidle")  # before its scripts have run, a key does nothing
        pages.append(page)
        return page

    yield opening
    for page in pages:
        page.close()
    assert asked and not [url for url in asked if not url.startswith((served[0], "data:", "blob:"))]
    assert not wrong


def chooser_of_key(page):
    """Press the button for videos by keyboard, again while the page is not listening yet; return the file chooser."""
    from playwright.sync_api import TimeoutError

    for _ in range(10):
        focus(page, "#video button:has(input[type=file])")  # not the one for the camera, which comes next
        with suppress(TimeoutError):
            with page.expect_file_chooser(timeout=10_000) as chooser:
                page.keyboard.press("Enter")
            return chooser.value
    raise AssertionError("no file chooser opened")


def test_upload_slide_and_press_by_keyboard_at_320_pixels(opened, clips):
    page = opened(320)
    chooser_of_key(page).set_files(clips / "a.mp4")
    page.wait_for_selector("#video video")
    focus(page, "#compute input[type=range]")
    before = page.locator("#compute input[type=range]").input_value()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    after = page.locator("#compute input[type=range]").input_value()
    assert float(after) == pytest.approx(float(before) - 0.1)
    focus(page, "#classify")
    page.keyboard.press("Enter")
    page.wait_for_selector("#overlay img")
    said = page.inner_text("#figures")
    (compute,) = map(float, re.findall(r"compute (0\.\d+)", said))
    assert float(after) - 0.01 <= compute <= float(after) or "below" in said
    assert {"ant", "bee", "cat"} <= set(re.findall(r"\w+", said)) and len(re.findall(r"[\d.]+ ms", said)) == 2
    assert page.evaluate("document.querySelector('#overlay img').naturalWidth") > 300
    kind, _, video = page.get_attribute("#overlay video", "src").partition(";base64,")
    with av.open(io.BytesIO(b64decode(video)), "r") as container:  # a browser without h264 shows no more than its frame
        assert kind == "data:video/mp4" and len(list(container.decode(video=0))) == 16  # each of 8 twice
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    frame = page.frame_locator("#overlay iframe")
    frame.locator("#main").press("ArrowRight")
    assert "Token in row" in frame.locator("#told").inner_text()


def test_a_broken_upload_shows_the_sentence_and_the_next_one_works(opened, clips, tmp_path):
    page = opened(1100)
    page.click("#classify")
    page.get_by_role("alert").get_by_text("there is no video; choose one").wait_for()
    large = tmp_path / "large.mp4"
    large.write_bytes(b"x" * 2_000_000)
    for file, said in ((clips / "b.mp4", "is a web page (HTML), not a video"), (large, "more than this page takes")):
        page.set_input_files("#video input[type=file]", file)
        page.wait_for_selector("#video video")
        page.click("#classify")
        page.get_by_role("alert").get_by_text(said).wait_for()
        assert page.locator("#overlay img").count() == 0
        page.locator("#video button[aria-label=Clear]").press("Enter")
    page.set_input_files("#video input[type=file]", clips / "a.mp4")
    page.wait_for_selector("#video video")
    page.click("#classify")
    page.wait_for_selector("#overlay img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100


def test_the_api_answers_without_a_path_and_survives_bad_input(served, small_model, clips):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    address, folder = served
    client = Client(address, verbose=False, analytics_enabled=False)
    name = small_model.name
    jobs = [client.submit(handle_file(clips / "a.mp4"), name, "tome", 0.6, api_name="/classify") for _ in range(2)]
    records = [job.result() for job in jobs]
    assert records[0]["merged"] == records[1]["merged"] and records[0]["method"] == "tome"
    assert str(folder) not in str(records) and str(small_model) not in str(records) and "/tmp" not in str(records)
    for file, how, share, said in (
        (handle_file(clips / "b.mp4"), "sttm", 0.6, "b.mp4 is a web page"),
        (handle_file(clips / "notes.md"), "sttm", 0.6, "is not a readable video"),
        (handle_file(clips / "a.mp4"), "sttm", 7.0, ""),
        (None, "sttm", 0.6, "there is no video"),
    ):
        with pytest.raises((AppError, ValueError)) as error:
            client.predict(file, name, how, share, api_name="/classify")
        assert said in str(error.value) and "/tmp" not in str(error.value)
    assert client.predict(handle_file(clips / "a.mp4"), name, "sttm", 0.6, api_name="/classify")["tokens"][0] == 64
    assert "/classify" in client.view_api(return_format="dict")["named_endpoints"]


def test_the_example_of_the_page_works_as_written(served, small_model, clips, tmp_path, monkeypatch):
    (code,) = re.findall(
        "^```python\n(.*?)^```$", (ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), re.S | re.M
    )
    assert "http://127.0.0.1:7860" in code and '"sttm-words"' in code
    (tmp_path / "clip.mp4").write_bytes((clips / "a.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = code.replace("http://127.0.0.1:7860", served[0]).replace("sttm-words", small_model.name)
    exec(compile(code, "docs/serve.md", "exec"), names)  # the page is ours
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), re.M)
    assert set(names["record"]) == {name for cell in table for name in re.findall("`(.*?)`", cell)}


def test_whatever_goes_wrong_inside_is_a_sentence_that_shows_nothing_of_it():
    from sttm.serving.app import guarded

    class Broken:
        def classify(self, *_):
            raise RuntimeError("secret of /home/me")

    with pytest.raises(SttmError, match=r"failed unexpectedly \(RuntimeError\); try another video") as error:
        guarded(Broken())("a.mp4", "m", "sttm", 0.6)  # type: ignore[arg-type]
    assert "secret" not in str(error.value)


def test_a_taken_port_is_one_sentence(served, small_model):
    from sttm.serving.app import serving

    port, folder = int(served[0].rstrip("/").rpartition(":")[2]), os.environ["GRADIO_TEMP_DIR"]
    try:
        with pytest.raises(SttmError, match=f"port {port} is taken"), serving(Engine([str(small_model)]), port):
            pass
    finally:
        os.environ["GRADIO_TEMP_DIR"] = folder
