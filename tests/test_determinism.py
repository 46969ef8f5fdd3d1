"""What docs/determinism.md says: the same clip gives the same bits; what else changes moves the logits by so much."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sttm
from sttm import models
from sttm.data.loader import read_ahead
from sttm.data.video.video import VIDEO_SUFFIXES, Video
from sttm.engines.engine import ENGINES, available, make_engine
from sttm.evaluation.inference import forward
from tests.helpers import ROOT

EXAMPLES = Path(sttm.__file__).parent / "bundled" / "examples"
#: What the page promises for each line of its table: how far logits may move.
BOUNDS = {"batch": 1e-5, "threads": 1e-5, "bf16": 0.05, "engines": 1e-3}


@pytest.fixture(scope="module", params=["sttm-words-plain", "sttm-words"])
def model_and_clips(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module, Tensor]:
    """Return a bundled model, plain or merged, and the pixels of the example videos."""
    model, preprocess = models.load_with_preprocess(request.param)
    files = sorted(path for path in EXAMPLES.iterdir() if path.suffix in VIDEO_SUFFIXES)
    samples = list(read_ahead([Video(str(path)) for path in files], preprocess, (1, 1), 2))
    return request.param, model, torch.cat([s.pixels_VTCHW for s in samples if s.pixels_VTCHW is not None])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_same_gives_the_same_bits(model_and_clips) -> None:
    name, model, clips = model_and_clips
    assert len(clips) >= 4
    once, again = forward(model, clips), forward(models.load(name), clips.clone())
    assert torch.equal(once, again) and len(once.argmax(-1).unique()) > 1


def test_batch_size_and_place(model_and_clips) -> None:
    _, model, clips = model_and_clips
    together = forward(model, clips)
    alone = torch.cat([forward(model, clip[None]) for clip in clips])
    turned = forward(model, clips.flip(0)).flip(0)
    assert (together - alone).abs().max() <= BOUNDS["batch"] and (together - turned).abs().max() <= BOUNDS["batch"]


def test_threads(model_and_clips, two_threads) -> None:
    _, model, clips = model_and_clips
    with_two = forward(model, clips)
    torch.set_num_threads(1)
    assert (with_two - forward(model, clips)).abs().max() <= BOUNDS["threads"]


def test_bf16(model_and_clips) -> None:
    _, model, clips = model_and_clips
    exact, coarse = forward(model, clips), forward(model, clips, torch.bfloat16)
    assert 0 < (exact - coarse).abs().max() <= BOUNDS["bf16"] * exact.abs().max()


@pytest.mark.extended
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
def test_engines(engine: str, model_and_clips) -> None:
    _, model, clips = model_and_clips
    if engine not in available("fp32", torch.device("cpu")):
        pytest.skip(f"{engine} cannot run here")
    found = forward(make_engine(engine, model), clips)
    assert (found - forward(model, clips)).abs().max() <= BOUNDS["engines"]


def test_the_page_has_these_bounds() -> None:
    table = (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8").split("\n\n")[2]
    said = [float(number) / (100 if sign else 1) for number, sign in re.findall(r"within (\S+?)( %)? ", table)]
    assert said == [BOUNDS["batch"], BOUNDS["threads"], BOUNDS["bf16"], BOUNDS["engines"]]
