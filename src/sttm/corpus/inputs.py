"""The videos of a corpus, numbered: a folder, a list, a parquet of paths or tar shards, kept as one parquet file.

Every number has one video, or says why it has none, so that every one gets its row.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from sttm.data.datasets.files import FileFinder
from sttm.data.datasets.formats import read_annotations
from sttm.data.video.video import VIDEO_SUFFIXES, ShardMember, Video
from sttm.errors import SttmError, few, first_line, shown

FILE = "inputs.parquet"
#: Columns that a parquet of paths may have them in.
COLUMNS = ("path", "video", "file")


def find(source: Path, root: Path | None = None, format: str = "auto", column: str | None = None) -> list[Video]:
    """Return all videos of a corpus, in order; one that is not there has an error.

    Args:
        source: a folder, an annotation list, a text file with a path a line, a parquet, or tar shards.
        root: where relative paths of a list start, and what no path may leave; left out, the folder of the list.
        format: the annotation format of a list.
        column: of a parquet, the column of paths.

    Raises:
        SttmError: if there is no such corpus, it cannot be read, or it is empty.
    """
    if source.suffix == ".parquet":
        return [*_from_paths(_parquet_paths(source, column), source, root)]
    if column is not None:
        raise SttmError(f"--column names a column of a parquet, and INPUT is {source}; leave it out")
    if source.suffix.lower() in VIDEO_SUFFIXES:
        raise SttmError(f"{source} is one video; give a folder, a list or shards, or use sttm predict")
    if source.is_dir() and format == "auto" and not any(source.glob("*.tar")):
        inside = (path for path in source.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        found = sorted(path for path in inside if not path.name.startswith("."))
        if not found:
            raise SttmError(f"{source} holds no video file; give a folder that does, a list, or tar shards")
        return [Video(str(path)) for path in found]
    if format == "auto" and (paths := _plain_paths(source)):
        return [*_from_paths(paths, source, root)]
    return _annotated(source, root, format)


def write(videos: Sequence[Video], folder: Path, part: int) -> str:
    """Write the videos to a folder, `part` of them in a row group, and return the SHA-256 of what they are."""
    import pyarrow
    import pyarrow.parquet

    temporary = folder / f".{FILE}.{os.getpid()}"
    try:
        pyarrow.parquet.write_table(_table(videos), temporary, row_group_size=part)
        temporary.replace(folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return digest(videos)


def digest(videos: Iterable[Video]) -> str:
    """Return the SHA-256 of what the videos are."""
    whole = hashlib.sha256()
    for video in videos:
        whole.update(repr(_facts(video)).encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


class Inputs:
    """The videos that `write` wrote, read a row group at a time."""

    def __init__(self, folder: Path, part: int) -> None:
        self.path, self.part = folder / FILE, part
        self._kept: tuple[int, list[Video]] = (-1, [])

    def read(self, first: int, last: int) -> list[tuple[int, Video]]:
        """Return the videos from `first` to before `last`, which are of one row group, with their numbers."""
        import pyarrow.parquet

        group = first // self.part
        if self._kept[0] != group:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                rows = file.read_row_group(group).to_pylist()
            self._kept = group, [_video(**row) for row in rows]
        start = group * self.part
        return list(enumerate(self._kept[1][first - start : last - start], start=first))


def _annotated(source: Path, root: Path | None, format: str) -> list[Video]:
    """Return the videos of an annotation list; its labels are not read."""
    try:
        listed, _ = read_annotations(source, format, "INPUT")
    except SttmError as error:
        raise SttmError(str(error).replace("INPUT.list=", "").replace("INPUT.format", "--format")) from error
    own = source if source.is_dir() else source.parent
    finder = FileFinder(listed.root or root or own)
    videos = []
    for annotation in listed.annotations:
        found = finder.find(annotation, None)
        if isinstance(found, str):
            absent = f"{found} does not exist; correct the list, or say with --root where its paths start"
            video = Video(found, error=absent)
        else:
            video = found
        videos.append(_inside(video, root) if annotation.member is None else video)
    return videos


def _parquet_paths(source: Path, column: str | None) -> list[str]:
    """Return the paths that a parquet file, or a folder of them, has in a column."""
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(source).names if source.is_file() else []
        if not source.exists():
            raise SttmError(f"{source} does not exist; check the path")
        wanted = column or next((name for name in COLUMNS if name in names), names[0] if len(names) == 1 else None)
        if wanted is None or wanted not in names:
            asked = f"has no column {wanted!r}" if wanted else "has no column of paths that sttm knows"
            raise SttmError(f"{source} {asked} but {few(names, 10)}; name the column of paths with --column")
        values = pyarrow.parquet.read_table(source, columns=[wanted])[wanted].to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SttmError(f"{source} is no readable parquet file ({first_line(error)[:200]}); write it again") from error
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong or not values:
        raise SttmError(f"the column {wanted} of {source} holds {shown(wrong[0]) if wrong else 'nothing'}; give paths")
    return values


def _plain_paths(source: Path) -> list[str]:
    """Return the lines of a text file each of which is a path with the suffix of a video; nothing for other files."""
    if source.suffix.lower() not in (".txt", ".csv", ".lst", "") or not source.is_file():
        return []
    try:
        lines = [line for line in source.read_bytes().decode("utf-8", "surrogateescape").split("\n") if line.strip()]
    except OSError as error:
        raise SttmError(f"{source} cannot be read ({error.strerror}); allow reading it") from error
    paths = [line.rstrip("\r") for line in lines]
    if paths and paths[0].strip() in COLUMNS:  # a csv of one column
        del paths[0]
    known = (Path(path).suffix.lower() in VIDEO_SUFFIXES and ";" not in path for path in paths)
    return paths if all(known) else []


def _from_paths(paths: Iterable[str], source: Path, root: Path | None) -> Iterable[Video]:
    """Yield a video for each path of a list; one that is a folder is a folder of frames."""
    for path in paths:
        whole = Path(root or source.parent, path)
        try:
            frames = (0, None) if "\0" not in path and whole.is_dir() else None
        except OSError:  # a name that is too long: the reader says so
            frames = None
        yield _inside(Video(str(whole), frames=frames), root)


def _inside(video: Video, root: Path | None) -> Video:
    """Return a video, or one with an error where its path leaves the root that was given."""
    if root is None or video.error is not None:
        return video
    try:
        if Path(video.path).resolve().is_relative_to(root.resolve()):
            return video
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null byte
        pass
    return Video(video.path, error=f"{video.path} is outside of --root={root}; correct the list, or give another root")


def _facts(video: Video) -> tuple[Any, ...]:
    return video.path, video.frames, None if video.member is None else astuple(video.member), video.error


def _table(videos: Sequence[Video]) -> Any:
    """Return the videos as a table; paths are bytes, as file names may hold bytes that are no text."""
    import pyarrow

    texts, numbers = pyarrow.binary(), pyarrow.int64()
    columns: dict[str, tuple[Any, list[Any]]] = {
        "path": (texts, [os.fsencode(video.path) for video in videos]),
        "skip": (numbers, [video.frames and video.frames[0] for video in videos]),
        "count": (numbers, [video.frames and video.frames[1] for video in videos]),
        "shard": (texts, [video.member and os.fsencode(video.member.file) for video in videos]),
        "offset": (numbers, [video.member and video.member.offset for video in videos]),
        "size": (numbers, [video.member and video.member.size for video in videos]),
        "error": (texts, [video.error and os.fsencode(video.error) for video in videos]),
    }
    return pyarrow.table({name: pyarrow.array(values, type_) for name, (type_, values) in columns.items()})


def _video(
    path: bytes, skip: int | None, count: int | None, shard: bytes | None, offset: int, size: int, error: bytes | None
) -> Video:
    member = None if shard is None else ShardMember(os.fsdecode(shard), offset, size)
    frames = None if skip is None else (skip, count)
    return Video(os.fsdecode(path), frames=frames, member=member, error=error and os.fsdecode(error))  # type: ignore[arg-type]
