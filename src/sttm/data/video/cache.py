"""A cache of decoded videos for small data sets; what is read from it equals what the file gives."""

from __future__ import annotations

from dataclasses import dataclass

from sttm.data.video.container import FileLike, open_stream
from sttm.data.video.decode import DecodedFrames, decode
from sttm.data.video.timeline import Timeline, read_timeline


@dataclass(frozen=True)
class CachedVideo:
    """All frames of a file, with its timeline."""

    timeline: Timeline
    decoded: DecodedFrames

    def select(self, wanted: list[int]) -> DecodedFrames:
        """Return the frames at the sorted indices `wanted`, as decoding the file would."""
        frames_CHW = {i: self.decoded.frames_CHW[i] for i in wanted if i in self.decoded.frames_CHW}
        times = self.decoded.times if len(frames_CHW) < len(wanted) else None
        return DecodedFrames(frames_CHW, times, self.decoded.warnings)


class VideoCache:
    """Keep decoded videos until `limit_bytes` are full; later ones are read from their files."""

    def __init__(self, limit_bytes: float) -> None:
        self.free_bytes = limit_bytes
        self._videos: dict[str, CachedVideo | None] = {}  # None: it did not fit

    def get(self, file: FileLike) -> CachedVideo | None:
        """Return the whole video, decoded at the first call, or None if it does not fit; see `decode`."""
        key = str(file)
        if key in self._videos:
            return self._videos[key]
        timeline = read_timeline(file)
        with open_stream(file) as (_, stream):
            num_bytes = 3 * stream.width * stream.height * len(timeline.times)
        if num_bytes > self.free_bytes:
            self._videos[key] = None
            return None
        video = CachedVideo(timeline, decode(file, timeline, list(range(len(timeline.times)))))
        self.free_bytes -= num_bytes
        self._videos[key] = video
        return video
