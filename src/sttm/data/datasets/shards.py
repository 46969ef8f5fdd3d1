"""webdataset's tar shards with random access: the tar's headers tell once where each video's bytes are."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from itertools import chain
from pathlib import Path

from sttm.config.parsing import parse_json
from sttm.data.datasets.annotations import Annotation
from sttm.data.threads import map_ahead
from sttm.data.video.video import VIDEO_SUFFIXES, ShardMember
from sttm.errors import SttmError

_BRACES = re.compile(r"\{([^{}]*)\}")
_LABELS = ("cls", "txt", "json")
_MAX_SHARDS = 10**7
_MAX_LABEL = 2**20  # bytes
THREADS = 8  # mostly waiting for a network disk


def expand(pattern: Path) -> list[Path]:
    """Return the shards that a pattern names: {000..012} and {a,b} are expanded, * and ? match existing files.

    Raises:
        SttmError: if an expanded name does not exist, or nothing matches.
    """
    if pattern.is_dir():
        return sorted(pattern.glob("*.tar"))
    found: list[Path] = []
    for name in _braces(str(pattern)):
        if any(sign in name for sign in "*?["):
            found.extend(Path(match) for match in sorted(glob.glob(name)))  # noqa: PTH207 - it may be absolute
        else:
            found.append(Path(name))
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise SttmError(
            f"{len(missing)} of {len(found)} shards of {pattern} do not exist, the first is {missing[0]}; check it"
        )
    if not found:
        raise SttmError(f"no shard matches {pattern}; check the path, and quote the pattern")
    return found


def _braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, dots, last = match[1].partition("..")
    whole = all(end.isdecimal() and len(end) < 19 for end in (first, last))
    if dots and not (whole and int(first) <= int(last) < _MAX_SHARDS):
        raise SttmError(f"{{{match[1]}}} is no range of shards; write, say, {{000000..000099}}")
    choices = match[1].split(",")
    if dots:
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    for choice in choices:
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :])


def index(shards: Sequence[Path]) -> list[Annotation]:
    """Return every key of the shards, in their order; only headers and labels are read."""
    with closing(map_ahead(_annotations_of, shards, THREADS, ahead=len(shards))) as found:
        return list(chain.from_iterable(found))


def _annotations_of(shard: Path) -> tuple[Annotation, ...]:
    state = shard.stat()
    return _read_index(str(shard), state.st_mtime_ns, state.st_size)


@cache  # several splits of one run may name the same shard
def _read_index(shard: str, _mtime: int, _size: int) -> tuple[Annotation, ...]:
    labels: dict[str, str | int | None] = {}
    members: dict[str, ShardMember] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, kind = name.partition(".")
                key = folder + slash + stem
                if not (member.isfile() and stem and dot) or member.issparse():
                    continue
                is_video = f".{kind.rpartition('.')[2].lower()}" in VIDEO_SUFFIXES
                if is_video and key in members:
                    raise SttmError(f"{shard} holds two videos of the key {key}; every video needs its own key")
                if is_video:
                    members[key] = ShardMember(shard, member.offset_data, member.size)
                if kind in _LABELS and member.size > _MAX_LABEL:
                    claim = f"{shard}/{member.name} is a label of {member.size:,} bytes"
                    raise SttmError(f"{claim}, more than the {_MAX_LABEL:,} allowed; make the shard again")
                file = tar.extractfile(member) if kind in _LABELS else None
                labels.setdefault(key, None)
                if file is not None and labels[key] is None:
                    labels[key] = _label(f"{shard}/{member.name}", kind, file.read())
    except SttmError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # also a size that no number of C holds
        advice = "unpack a .tar.gz, or download it again"
        raise SttmError(f"{shard} is no whole, uncompressed tar ({error}); {advice}") from error
    paths = {key: f"{shard}/{key}" for key in labels}
    return tuple(Annotation((paths[key],), label, paths[key], member=members.get(key)) for key, label in labels.items())


def _label(path: str, kind: str, data: bytes) -> str | int | None:
    try:
        text: str | int | None = data.decode().strip()
        if kind == "json":
            values = parse_json(data, path)
            text = values.get("label") if isinstance(values, dict) else values
        if isinstance(text, str) and text.isdecimal() and len(text) < 19:
            return int(text)
        if text is None or (isinstance(text, str | int) and not isinstance(text, bool)):
            return text
    except ValueError:
        pass
    raise SttmError(f"{path} holds no label; give a number or a name, in JSON under the key label")
