"""The models of words and the example videos that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.models import resolve
from sttm.visual.demo import EXAMPLES
from tests.helpers import ROOT


@pytest.mark.parametrize("name", ["sttm-words", "sttm-words-plain"])
def test_words_are_read_from_the_examples(name: str) -> None:
    files = sorted(str(file) for file in EXAMPLES.glob("*.mp4"))
    records = list(sttm.predict(files, model=name))
    right = [record["predictions"][0]["label"] == Path(record["path"]).stem for record in records]
    assert len(right) == 6 and sum(right) >= 5
    assert all(record["frames_decoded"] == 16 for record in records)


def test_words_models_take_the_pixels_that_they_were_trained_on() -> None:
    """The shorter side to 48 by Pillow, a centre crop, all 16 frames; one mean and deviation for all colours."""
    plain, merged = (Preprocess.from_folder(resolve(name)) for name in ("sttm-words-plain", "sttm-words"))
    assert merged == plain
    assert (merged.resize, merged.crop, merged.resize_with, merged.resample) == (48, (48, 48), "pillow", "bilinear")
    assert merged.sampling == Sampling(16)
    frames_TCHW = torch.from_numpy(np.random.default_rng(0).integers(256, size=(16, 3, 48, 48), dtype=np.uint8))
    pixels_TCHW = merged(frames_TCHW)[0]
    # The mean and deviation of the levels of every seventh training clip.
    torch.testing.assert_close(pixels_TCHW, (frames_TCHW - 133.877632) / 47.796733, atol=1e-4, rtol=1e-4)


def test_examples_are_small_and_say_where_they_come_from() -> None:
    files = sorted(EXAMPLES.glob("*.mp4"))
    assert len(files) == 6 and all(file.stat().st_size < 10_000 for file in files)
    words = set(sttm.load("sttm-words").config.id2label.values())
    for text in ((EXAMPLES / "README.md"), ROOT / "NOTICE"):
        attribution = " ".join(text.read_text(encoding="utf-8").split())
        for part in ("Cooke", "Barker", "Cunningham", "Shao", "GRID", "CC BY 4.0", "speaker s1"):
            assert part in attribution
    assert {file.stem for file in files} <= words
