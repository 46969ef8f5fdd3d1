"""Videos whose labels are not needed: all files below a folder, or what any annotation list names."""

from __future__ import annotations

from pathlib import Path

from sttm.config.sections import DataSettings, SplitSettings
from sttm.data.datasets.video_set import read_split
from sttm.data.video.video import VIDEO_SUFFIXES, Video
from sttm.errors import SttmError


def find_unlabelled(data: Path, root: Path | None = None, format: str = "auto") -> list[Video]:
    """Return the videos of a folder, in whatever folders they lie, or of an annotation list.

    Raises:
        SttmError: for a list that is missing, unknown or broken, or a folder without videos.
    """
    if data.is_dir() and format == "auto":
        inside = (path for path in data.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        found = sorted(path for path in inside if not path.name.startswith("."))
        if found:
            return [Video(str(path)) for path in found]
    elif data.suffix.lower() in VIDEO_SUFFIXES:
        raise SttmError(f"{data} is one video; give a folder of videos, or an annotation list")
    split = SplitSettings(list=data, root=root, format=format)
    return [*read_split(DataSettings(test=split), "test").videos]


def spread(videos: list[Video], count: int) -> list[Video]:
    """Return at most `count` of the videos, spread evenly over the list."""
    count = min(count, len(videos))
    return [videos[(2 * number + 1) * len(videos) // (2 * count)] for number in range(count)]
