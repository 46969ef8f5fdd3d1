"""Small sets of videos for the tests of loading."""

from dataclasses import replace
from pathlib import Path

import pytest

from sttm.data.datasets.video_set import Video, VideoSet
from tests.data.helpers import write_noise_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    """Ten videos of three classes."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_noise_video(folder / f"{i}.mp4", i) for i in range(10)]
    return VideoSet(
        videos=tuple(Video(str(path), i % 3) for i, path in enumerate(paths)),
        classes=("a", "b", "c"),
        missing=(),
        format="",
        direction_sensitive=False,
    )


@pytest.fixture
def with_a_bad_one(videos: VideoSet, tmp_path: Path) -> VideoSet:
    """The same set, whose sixth video is unreadable."""
    (bad := tmp_path / "bad.mp4").write_bytes(b"no video at all" * 50)
    return replace(videos, videos=(*videos.videos[:5], Video(str(bad), 1), *videos.videos[6:]))
