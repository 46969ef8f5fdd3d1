"""The page of one clip, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sttm.backbones.base import Grid
from sttm.visual.pages import explorer
from sttm.visual.pictures import Drawing
from tests.helpers import random_map


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    merge_map = random_map()
    merge_map.assignment[0, 0] = -1
    return Drawing(torch.randint(0, 256, (8, 3, 30, 50), dtype=torch.uint8), [merge_map], Grid(4, 3, 5, 0))


@pytest.fixture(scope="module")
def file(drawing, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(explorer.page(drawing, ["</script><b>clip", "With merging: <i>"]), encoding="utf-8")
    return path


def test_the_page_needs_nothing_beside_itself(file):
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|<link|src=", html.replace("image.src = address", ""))
    assert html.count("</script>") == 1 and "<b>" not in html and "<i>" not in html
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html


def test_keys_and_pointer_choose_a_token_and_the_page_says_what_went_into_it(browser, file, drawing):
    page = browser.new_page(viewport={"width": 320, "height": 900})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_function("document.getElementById('told').textContent")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    slot_THW = drawing.stages[0].slot_THW
    page.keyboard.press("Tab")  # the layers, which end at the last
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#told").inner_text().startswith("Token frame 2 of 4")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # the token in the middle
    page.keyboard.press("ArrowRight")  # and the one on its right
    told = page.locator("#told").inner_text()
    count = int((slot_THW == slot_THW[1, 1, 3]).sum())
    inside = ", ".join(f"frame {t + 1}: {n}" for t in range(4) if (n := int((slot_THW[t] == slot_THW[1, 1, 3]).sum())))
    assert told == f"Token in row 2, column 4 of frame 2: one of {count} tokens that became one ({inside})."
    page.keyboard.press("Escape")
    page.locator("#strip button").first.click()
    box = page.locator("#main").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    assert page.locator("#told").inner_text() == "Token in row 1, column 1 of frame 1: dropped."
    page.locator("#layer").press("ArrowLeft")
    assert page.locator("#caption").inner_text() == "Before merging: 60 tokens"
    assert not wrong
    page.close()
