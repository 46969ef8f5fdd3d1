"""Reading in processes of their own: the same pixels, and a video that ends its process costs its own row alone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import sttm
from sttm.data.isolated import Limits, isolated
from sttm.data.loader import read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video


@dataclass(frozen=True)
class Faulty:
    """A video that does something bad when it is read."""

    fault: str
    path: str = "bad.mp4"
    label: int | None = None

    def read(self, *_: object, **__: object) -> list[Any]:
        match self.fault:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                time.sleep(600)
            case "swell":
                torch.ones(2**30)
            case "exit":
                os._exit(3)
        raise AssertionError


def test_each_fault_costs_its_own_row(clips: Path, small_model: Path) -> None:
    good, preprocess = Video(str(clips / "a.mp4")), Preprocess.from_folder(small_model)
    faults = [Faulty(fault) for fault in ("crash", "hang", "swell", "exit")]
    videos = [good, *(cast(Video, video) for fault in faults for video in (fault, good)), Video(str(clips / "b.mp4"))]
    with isolated(1, Limits(seconds=1, gib=0.5)) as read:
        samples = list(read_ahead(videos, preprocess, (2, 3), 2, read))
    (plain,) = read_ahead([good], preprocess, (2, 3), 1)
    assert plain.pixels_VTCHW is not None
    for sample in samples[:-1:2]:
        assert sample.pixels_VTCHW is not None and torch.equal(sample.pixels_VTCHW, plain.pixels_VTCHW)
        assert sample.error is None and sample.frames_decoded == plain.frames_decoded
    said = [str(sample.error) for sample in (*samples[1:-1:2], samples[-1])]
    assert [sample.index for sample in samples] == list(range(len(videos)))
    for sentence, words in zip(
        said,
        (
            "bad.mp4 crashes the decoder (SIGSEGV)",
            "bad.mp4 takes longer than the 1 s that reading one video may",
            "bad.mp4 takes more than the 0.5 GiB of memory that reading one video may",
            "bad.mp4 crashes the decoder (exit code 3)",
            "b.mp4 is a web page",
        ),
        strict=True,
    ):
        assert words in sentence, said


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": float("nan")}, {"gib": 0.1}, {"gib": 1e9}])
def test_limits_that_cannot_be(limits: dict[str, float]) -> None:
    with pytest.raises(sttm.SttmError, match="give, say,"):
        Limits(**limits)
