"""Folders of pictures: read as the frames of a video, or one clear sentence."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sttm.data.datasets.video_set import read_split
from sttm.data.video.frame_folder import list_frames
from sttm.data.video.read import Sampling, read
from sttm.errors import SttmError
from tests.data.helpers import data_settings, write_lines


def pictures(folder: Path, numbers: range, *, pattern: str = "img_{:05d}.png", size: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.full((size, size + 2, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / pattern.format(number))


def read_one(root: Path, line: str, sampling: Sampling, **how: Any) -> list[int]:
    """Numbers of the pictures that were read: each is a level of grey."""
    data = data_settings(labels=write_lines(root / "names.txt", "a"), train={"list": write_lines(root / "l.txt", line)})
    (video,) = read_split(data, "train").videos
    (clip,) = video.read(sampling, **how)
    assert clip.frames_TCHW.shape[1:] == (3, 8, 10) and clip.path == str(root / "x")
    levels = clip.frames_TCHW.flatten(1)
    assert (levels == levels[:, :1]).all()
    return levels[:, 0].tolist()


def test_pictures_are_taken_by_their_numbers(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 13), pattern="img_{}.png")  # 10 would come before 2 by its name
    pictures(tmp_path / "x", range(1, 13), pattern="flow_x_{}.png", size=4)
    assert read_one(tmp_path, "x 12 0", Sampling(12)) == list(range(1, 13))
    assert read_one(tmp_path, "x 9 0", Sampling(3)) == [1, 5, 9]
    assert read_one(tmp_path, "x 2 5 0", Sampling(5)) == [3, 4, 5, 6, 7]
    assert read_one(tmp_path, "x 8 9 0", Sampling(4)) == [9, 10, 11, 12]  # shorter than announced


def test_pictures_of_another_size_are_scaled_to_the_first(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 3))
    pictures(tmp_path / "x", range(3, 5), size=16)
    assert read_one(tmp_path, "x 4 0", Sampling(4)) == [1, 2, 3, 4]


def test_random_pictures_are_chosen_as_frames_are(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 13))
    drawn = {tuple(read_one(tmp_path, "x 12 0", Sampling(3), rng=np.random.default_rng(seed))) for seed in range(8)}
    assert len(drawn) > 1
    assert all(4 * k < picked <= 4 * (k + 1) for picks in drawn for k, picked in enumerate(picks))
    again = [read_one(tmp_path, "x 12 0", Sampling(3), rng=np.random.default_rng(5)) for _ in range(2)]
    assert again[0] == again[1]


def test_what_is_wrong_with_a_folder_of_pictures_is_one_sentence(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 4))
    with pytest.raises(SttmError, match=r"ends before picture 6"):
        read_one(tmp_path, "x 5 2 0", Sampling(2))
    (tmp_path / "x/img_00002.png").write_bytes(b"no picture")
    with pytest.raises(SttmError, match=r"img_00002\.png is no readable picture"):
        read_one(tmp_path, "x 3 0", Sampling(3))
    whole = (tmp_path / "x/img_00001.png").read_bytes()
    (tmp_path / "x/img_00002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SttmError, match=r"img_00002\.png is"):
        read_one(tmp_path, "x 3 0", Sampling(3))
    pictures(tmp_path / "x", range(1, 4), pattern="depth_{}.png")
    with pytest.raises(SttmError, match=r"holds pictures of 2 series \(depth_, img_\)"):
        read_one(tmp_path, "x 3 0", Sampling(3))


def test_a_real_clip_reads_the_same_as_its_pictures(shared_data: Path, tmp_path: Path):
    """An independent way: the frames of a video, saved without loss and listed as mmaction2 does."""
    path = shared_data / "ut-interaction/scene/hug/set1_10_2_1.mp4"
    (whole,) = read(path, Sampling(20, "dense"))
    folder = tmp_path / "x"
    folder.mkdir()
    for number, frame_CHW in enumerate(whole.frames_TCHW, start=1):
        Image.fromarray(frame_CHW.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    data = data_settings(labels=write_lines(tmp_path / "n", "a"), train={"list": write_lines(tmp_path / "l", "x 20 0")})
    (clip,) = read_split(data, "train").videos[0].read(Sampling(20))
    assert torch.equal(clip.frames_TCHW, whole.frames_TCHW)


def test_only_regular_files_are_pictures(tmp_path: Path):
    """Opening a pipe would block for ever."""
    pictures(tmp_path / "x", range(1, 4))
    os.mkfifo(tmp_path / "x/img_00004.png")
    (tmp_path / "x/img_00005.png").mkdir()
    assert [path.name for path in list_frames(str(tmp_path / "x"))] == [f"img_0000{n}.png" for n in (1, 2, 3)]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path):
    pictures(tmp_path / "x", range(1, 3))
    Image.new("1", (9000, 9000)).save(tmp_path / "x/img_00002.png")
    with pytest.raises(
        SttmError, match=r"img_00002\.png has frames of 9000x9000 pixels, more than the 35,389,440 allowed"
    ):
        read_one(tmp_path, "x 2 0", Sampling(2))
