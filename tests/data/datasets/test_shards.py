"""Tar shards: random access to any video, in the order of the shards, with the same bytes that went in."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from sttm.config.sections import DataSettings
from sttm.data.datasets import shards
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.video.read import Sampling, probe, read
from sttm.errors import SttmError
from sttm.synth.videos import encode


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """Seven short videos of different brightness."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(7):
        pictures_THW3 = np.full((8 + number, 32, 32, 3), 30 * number, np.uint8)
        encode(pictures_THW3, folder / f"{number}.mp4")
    return sorted(folder.iterdir())


def pack(folder: Path, clips: list[Path], *, each: int = 3) -> Path:
    """Shards of three clips, written by webdataset itself; the pattern that names them."""
    for start in range(0, len(clips), each):
        with webdataset.TarWriter(str(folder / f"s-{start // each:06d}.tar")) as writer:
            for number in range(start, min(start + each, len(clips))):
                writer.write({"__key__": f"part/{number:03d}", "mp4": clips[number].read_bytes(), "cls": number % 3})
    return folder / f"s-{{000000..{(len(clips) - 1) // each:06d}}}.tar"


def split(pattern: Path, **data: Any) -> VideoSet:
    return read_split(DataSettings.model_validate({"train": {"list": pattern}} | data), "train")


def test_shards_are_read_in_order_and_at_any_place(clips: list[Path], tmp_path: Path):
    videos = split(pack(tmp_path, clips))
    assert videos.format == "shards" and videos.classes == ("0", "1", "2")
    assert [video.label for video in videos.videos] == [number % 3 for number in range(7)]
    assert [video.path for video in videos.videos] == [f"{tmp_path}/s-{n // 3:06d}.tar/part/{n:03d}" for n in range(7)]
    for number in (6, 0, 3, 6):
        video = videos.videos[number]
        assert video.member is not None and video.member.open().read() == clips[number].read_bytes()
        (clip,), (plain,) = video.read(Sampling(5)), read(clips[number], Sampling(5))
        assert torch.equal(clip.frames_TCHW, plain.frames_TCHW) and clip.path == video.path
        assert video.probe() == replace(probe(clips[number]), path=video.path)


def test_random_frames_are_those_of_the_file(clips: list[Path], tmp_path: Path):
    video = split(pack(tmp_path, clips)).videos[4]
    (one,) = video.read(Sampling(4), np.random.default_rng(3))
    (two,) = read(clips[4], Sampling(4), rng=np.random.default_rng(3))
    assert one.indices == two.indices


@pytest.mark.parametrize("pattern", ["s-*.tar", "s-00000[012].tar", "s-{000000,000001,000002}.tar", "."])
def test_patterns_of_all_kinds_name_the_same_shards(pattern: str, clips: list[Path], tmp_path: Path):
    wanted = split(pack(tmp_path, clips))
    assert split(tmp_path / pattern) == wanted


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 6))
def test_braces_count_as_the_shell_does(first: int, more: int, width: int):
    pattern = f"/d/{{a,b}}-{{{first:0{width}d}..{first + more:0{width}d}}}.tar"
    named = list(shards._braces(pattern))
    assert named == [f"/d/{letter}-{n:0{width}d}.tar" for letter in "ab" for n in range(first, first + more + 1)]


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_labels_stand_in_cls_txt_or_json(clips: list[Path], tmp_path: Path):
    video = clips[0].read_bytes()
    members = {
        "a.mp4": video, "a.cls": b"1\n",
        "b.txt": "séance\n".encode(), "b.MP4": video,
        "c.json": json.dumps({"label": "run", "fps": 8}).encode(), "c.webm": video,
        "d.json": json.dumps({"label": 1}).encode(), "d.small.mp4": video, "d.jpg": b"a picture",
        "._d.mp4": b"what macOS leaves",
    }  # fmt: skip
    names = tmp_path / "names.txt"
    names.write_text("run\nséance\n", encoding="utf-8")
    videos = split(write_tar(tmp_path / "x.tar", members), labels=names)
    assert [(Path(video.path).name, video.label) for video in videos.videos] == [("a", 1), ("b", 1), ("c", 0), ("d", 1)]
    assert all(video.member is not None and video.member.size == len(clips[0].read_bytes()) for video in videos.videos)


def test_a_key_without_video_is_missing(clips: list[Path], tmp_path: Path):
    shard = write_tar(tmp_path / "x.tar", {"a.mp4": clips[0].read_bytes(), "a.cls": b"0", "b.cls": b"0"})
    with pytest.raises(SttmError, match=rf"1 of 2 videos of data\.train are missing .* the first is {shard}/b"):
        split(shard)
    assert split(shard, max_missing=0.5).missing == (f"{shard}/b",)


def test_a_shard_that_was_written_anew_is_read_anew(clips: list[Path], tmp_path: Path):
    shard = tmp_path / "x.tar"
    write_tar(shard, {"a.mp4": clips[0].read_bytes(), "a.cls": b"0"})
    before = split(shard)
    write_tar(shard, {f"{key}.{kind}": data for key in "ab" for kind, data in (("cls", b"0"), ("mp4", b"x" * 9000))})
    assert len(before.videos) == 1 and len(split(shard).videos) == 2


BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "two videos": ({"a.mp4": b"1", "a.cls": b"0", "a.webm": b"2"}, r"two videos of the key a;"),
    "no label in it": ({"a.mp4": b"1", "a.json": b'{"label": [1]}'}, r"x\.tar/a\.json holds no label"),
    "no json": ({"a.mp4": b"1", "a.json": b"{"}, r"x\.tar/a\.json holds no label"),
    "no text": ({"a.mp4": b"1", "a.cls": b"\xff\xfe"}, r"x\.tar/a\.cls holds no label"),
    "no label at all": ({"a.mp4": b"1", "b.mp4": b"1", "b.cls": b"0"}, r"x\.tar/a has no label"),
    "nothing": ({}, r"lists no video"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_shard_is_one_sentence(name: str, tmp_path: Path):
    members, wanted = BROKEN[name]
    with pytest.raises(SttmError, match=wanted):
        split(write_tar(tmp_path / "x.tar", members))


def test_shards_that_are_not_whole_are_one_sentence(clips: list[Path], tmp_path: Path):
    pattern = pack(tmp_path, clips)
    shard = tmp_path / "s-000001.tar"
    whole = shard.read_bytes()
    videos = split(pattern)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SttmError, match=r"s-000001\.tar is no whole, uncompressed tar"):
        split(pattern)
    with pytest.raises(SttmError, match=r"s-000001\.tar is cut off within a video"):
        videos.videos[5].read(Sampling(2))
    shard.unlink()
    with pytest.raises(SttmError, match=r"1 of 3 shards of .* do not exist, the first is .*s-000001\.tar"):
        split(pattern)
    with pytest.raises(SttmError, match=r"s-000001\.tar cannot be read"):
        videos.videos[4].read(Sampling(2))


def test_patterns_that_name_nothing_are_one_sentence(tmp_path: Path):
    wrong = {"x-*.tar": "no shard matches", "x-{5..3}.tar": "is no range of shards", "x" * 5000: "File name too long"}
    wrong[f"x-{{0..{'9' * 200}}}.tar"] = "is no range of shards"
    for pattern, wanted in wrong.items():
        with pytest.raises(SttmError, match=wanted):
            split(tmp_path / pattern)
    packed = write_tar(tmp_path / "x.tar", {"a.mp4": b"1", "a.cls": b"0"}, "w:gz")
    with pytest.raises(SttmError, match=r"unpack a \.tar\.gz"):
        split(packed)
