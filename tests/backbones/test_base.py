"""What every family inherits: the shape of its pixels, and what one clip of them is."""

from __future__ import annotations

import pytest
import torch

from sttm.backbones.videomae import VideoMAE
from sttm.errors import SttmError


class OfPictures(VideoMAE):
    pictures = True


@pytest.mark.parametrize(
    ("family", "clip_shape", "shape"),
    [(VideoMAE(), (8, 3, 32, 24), (2, 8, 3, 32, 24)), (OfPictures(), (1, 3, 32, 24), (2, 3, 32, 24))],
)
def test_a_clip_of_pixels(family: VideoMAE, clip_shape: tuple[int, int, int, int], shape: tuple[int, ...]) -> None:
    assert family.pixels_shape(2, clip_shape) == shape
    assert family.clip_of(torch.empty(shape)) == clip_shape


@pytest.mark.parametrize(
    ("family", "shape", "wanted"),
    [
        (
            VideoMAE(),
            (3, 32, 24),
            r"\(clips, frames, channels, height, width\) and got 4 dim.*give it a batch of clips",
        ),
        (OfPictures(), (8, 3, 32, 24), r"\(pictures, channels, height, width\) and got 5 dim.*a batch of pictures"),
    ],
)
def test_other_dimensions_are_one_sentence(family: VideoMAE, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(SttmError, match=wanted):
        family.clip_of(torch.empty(2, *shape))
