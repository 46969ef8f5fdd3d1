"""A cache of decoded videos for small data sets; what is read from it equals what the file gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sttm.data.video.container import FileLike, open_stream
from sttm.data.video.decode import DecodedFrames, Prepare, decode_in_order
from sttm.data.video.timeline import Timeline, read_timeline


@dataclass(frozen=True)
class CachedVideo:
    """All frames that a file yields, by their number, with its timeline."""

    timeline: Timeline
    decoded: DecodedFrames

    def select(self, timeline: Timeline, wanted: list[int], prepare: Prepare | None = None) -> DecodedFrames:
        """Return the frames at the indices `wanted` of a timeline, as `decode` would."""
        numbers = {timeline.index(number, stamp): number for number, stamp in enumerate(self.decoded.stamps)}
        present = [index for index in wanted if index in numbers]
        pictures_KCHW = {index: self.decoded.pictures_KCHW[numbers[index]] for index in present}
        if prepare is not None:
            pictures_KCHW = {index: prepare(whole_1CHW[0]) for index, whole_1CHW in pictures_KCHW.items()}
        return replace(self.decoded, pictures_KCHW=pictures_KCHW)


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
        numbered = replace(timeline, exact=False)
        video = CachedVideo(timeline, decode_in_order(file, numbered, list(range(len(timeline.times)))))
        self.free_bytes -= num_bytes
        self._videos[key] = video
        return video
