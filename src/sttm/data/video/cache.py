"""Small data sets in memory: videos decoded whole, once, and read again with the very results that the file gives."""

from __future__ import annotations

from dataclasses import dataclass

from sttm.data.video import decoders
from sttm.data.video.decoders import Decoded, Source, Timeline


@dataclass(frozen=True)
class Whole:
    """All frames of a file, which answer as the file does."""

    timeline: Timeline
    decoded: Decoded

    def decode(self, _: Source, __: Timeline, wanted: list[int]) -> Decoded:
        """Take the frames at the sorted indices `wanted`, as a decoder would."""
        frames_CHW = {i: self.decoded.frames_CHW[i] for i in wanted if i in self.decoded.frames_CHW}
        times = self.decoded.times if len(frames_CHW) < len(wanted) else None
        return Decoded(frames_CHW, times, self.decoded.notes)


class Kept:
    """Decoded videos, kept until so many bytes are full; those that come later are read from their files."""

    def __init__(self, limit_bytes: float) -> None:
        self.free_bytes = limit_bytes
        self._videos: dict[str, Whole | None] = {}  # None: there was no room

    def get(self, source: Source) -> Whole | None:
        """Return the whole video, decoding it at its first time; None if there is no room for it."""
        key = str(source)
        if key in self._videos:
            return self._videos[key]
        timeline = decoders.survey(source)
        with decoders.open_video(source) as (_, stream):
            num_bytes = 3 * stream.width * stream.height * len(timeline.times)
        if num_bytes > self.free_bytes:
            self._videos[key] = None
            return None
        whole = Whole(timeline, decoders.decode_with_pyav(source, timeline, list(range(len(timeline.times)))))
        self.free_bytes -= num_bytes
        self._videos[key] = whole
        return whole
