"""Refuse files whose headers claim far more than their bytes can hold, before memory is reserved for it.

FFmpeg makes an entry for every sample that the tables of an mp4 announce, though one number of four bytes can announce
billions of them. A gif of 35 bytes can announce a picture of any size.
"""

import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from sttm.errors import SttmError

MAX_PIXELS = 8192 * 4320  # of one frame: 8K
MAX_SAMPLES = 2**22  # of one file: 38 hours at 30 frames a second
_FREE_SAMPLES = 2**14  # allowed in a file of any size
_BYTES_PER_SAMPLE = 2  # at least, on average
_FREE_PIXELS = 2**23  # of one frame, allowed in a file of any size: 4K
_PIXELS_PER_BYTE = 2**14  # at most: one colour in 8K, as VP9 codes it, has two thirds of this
_FREE_CLIP_PIXELS = 2**28  # of all frames of a clip, allowed in a file of any size: 32 frames of 4K, 8 of 8K
_CLIP_PIXELS_PER_BYTE = 2**16  # at most: 16 frames of one colour in 8K, as VP9 codes them, have 60 % of this
_MAX_INDEX_BYTES = 2**27
_MAX_TABLES = 16  # of one kind in one track, which needs one


def check_pixels(name: object, width: int, height: int, num_bytes: int) -> None:
    """Raise SttmError for frames of too many pixels, at all or for a file of `num_bytes`."""
    size, pixels = f"{name} has frames of {width}x{height} pixels", width * height
    if pixels > MAX_PIXELS:
        raise SttmError(f"{size}, more than the {MAX_PIXELS:,} allowed; scale it down first")
    if pixels > max(_FREE_PIXELS, _PIXELS_PER_BYTE * num_bytes):
        raise SttmError(f"{size} but only {num_bytes:,} bytes, too few for one; make or download it again")


def most_frames(width: int, height: int, num_bytes: int) -> int:
    """Return how many frames of this size may be decoded for one clip of a file of `num_bytes`; at least one."""
    return max(max(_FREE_CLIP_PIXELS, _CLIP_PIXELS_PER_BYTE * num_bytes) // max(width * height, 1), 1)


def check_tables(name: object, file: BinaryIO) -> None:
    """Raise SttmError for an mp4 or mov whose tables announce more samples than the file can hold; others pass."""
    num_bytes = size_of(file)
    allowed = min(max(num_bytes // _BYTES_PER_SAMPLE, _FREE_SAMPLES), MAX_SAMPLES)
    claimed = dict.fromkeys(_COUNTS, 0)
    for index in _indices(file, num_bytes):
        bounds = [0, *(match.start() for match in re.finditer(b"trak", index)), len(index)]
        for start, end in pairwise(bounds):
            for kind, count in _samples_of_track(index, start, end, num_bytes).items():
                claimed[kind] += count
    if (most := max(claimed.values())) > allowed:
        what = f"{name} announces {most:,} frames or samples in {num_bytes:,} bytes"
        raise SttmError(f"{what}, more than the {allowed:,} allowed; make or download it again")


def size_of(file: BinaryIO) -> int:
    """Return the number of bytes of an open file, and go to its start."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return num_bytes


def _indices(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of every outermost box of an mp4, less those with the samples themselves."""
    position = 0
    while position + 8 <= num_bytes:
        file.seek(position)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if not re.fullmatch(rb"[ -~\xa9]{4}", kind):
            return
        if size == 1:  # the size follows, in 64 bits
            size = int.from_bytes(header[8:], "big")
        size = size or num_bytes - position  # 0: to the end
        if size < 8:
            return
        if kind != b"mdat":
            file.seek(position)
            yield file.read(min(size, _MAX_INDEX_BYTES))
        position += size


def _samples_of_track(index: bytes, start: int, end: int, num_bytes: int) -> dict[bytes, int]:
    """Return the samples that each kind of table announces for the track between two positions.

    Tables are searched by their names, as FFmpeg takes them at any depth.
    """
    places = {kind: [m.end() + 4 for m in re.compile(kind).finditer(index, start, end)] for kind in (*_COUNTS, b"elst")}
    runs = places[b"stts"]
    if max(len(runs), len(places[b"ctts"])) > _MAX_TABLES:
        return {b"stts": 2**32}
    counts = {kind: sum(count(index, place) for place in places[kind]) for kind, count in _COUNTS.items()}
    one_tick_each = [(_number(index, place), _number(index, place + 8)) for place in runs] == [(1, 1)]
    is_audio = index.find(b"vide", start, end) < 0
    if is_audio and one_tick_each and not places[b"ctts"] and max(counts.values()) <= num_bytes:
        return {}  # PCM: FFmpeg makes an entry for a chunk of samples
    edits = sum(_number(index, place) for place in places[b"elst"])  # each has entries of its own
    return counts | {b"stsz": counts[b"stsz"] * max(edits, 1)}


def _sum_of_runs(index: bytes, place: int) -> int:
    """Return the samples in a table of runs, each of a count and a duration."""
    runs = np.frombuffer(index, np.uint8, offset=min(place + 4, len(index)))[: 8 * _number(index, place)]
    return int(runs[: len(runs) // 8 * 8].view(">u4")[::2].sum(dtype=np.int64))


def _number(index: bytes, place: int) -> int:
    return int.from_bytes(index[place : place + 4], "big")


#: How many samples a table announces; the place is behind its version and flags.
_COUNTS: dict[bytes, Callable[[bytes, int], int]] = {
    b"stsz": lambda index, place: _number(index, place + 4),
    b"stz2": lambda index, place: _number(index, place + 4),
    b"stts": _sum_of_runs,
    b"ctts": _sum_of_runs,
    b"trun": _number,
}
