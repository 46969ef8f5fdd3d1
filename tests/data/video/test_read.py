"""Reading: exactly the frames that were asked for, from every file there is, or one clear sentence."""

import csv
import io
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from sttm.data.video.container import OpenFile
from sttm.data.video.decode import decode_in_order
from sttm.data.video.read import Sampling, probe, read
from sttm.data.video.timeline import read_timeline
from sttm.errors import SttmError
from tests.data.helpers import (
    assert_same_frames,
    decode_naively,
    places,
    write_video,
)
from tests.helpers import ROOT

DATA = Path(os.environ.get("STTM_DATA", ROOT.parent / "shared" / "data"))


FOLDERS = [DATA / "clips", DATA / "clips-made"]


FILES = sorted(path for folder in FOLDERS for path in folder.glob("*") if path.suffix != ".csv")


needs_data = pytest.mark.skipif(not FILES, reason=f"no clips under {DATA}: set STTM_DATA to the shared data")


#: Frames of the files where the program that wrote the tables stopped at an error: those of ffprobe, which goes on.
BEHIND_ERRORS = {"decord_corrupted.mp4": "49", "bad_bitflips.mp4": "20"}


@cache
def expected(path: Path) -> dict[str, str]:
    """What a full decode of a file gives, by an earlier and independent program."""
    with (path.parent / "probe.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["path"] == path.name)
    assert bool(row["decode_error"]) == (path.name in BEHIND_ERRORS)
    return row | {"frames": BEHIND_ERRORS.get(path.name, row["frames"])}


def one_pixel(frame_CHW: torch.Tensor) -> torch.Tensor:
    return frame_CHW[None, :, :1, :1].clone()


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=lambda path: f"{path.parent.name}/{path.name}")


@needs_data
@each(FILES)
def test_every_file_decodes_as_recorded_or_gives_one_sentence(path):
    row = expected(path)
    num_frames = int(row["frames"] or 0)
    if num_frames == 0:
        for look in (probe, lambda p: read(p, Sampling())):
            with pytest.raises(SttmError) as caught:
                look(path)
            message = str(caught.value)
            assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 160
        return
    info = probe(path)
    width, height, turn = int(row["width"]), int(row["height"]), int(row["rotation"]) % 360
    assert (info.width, info.height) == ((width, height) if turn % 180 == 0 else (height, width))
    assert info.fps == pytest.approx(float(row["fps"]), abs=1e-3)
    counted, beyond = replace(read_timeline(path), exact=False), list(range(num_frames + 4))
    decoded = decode_in_order(path, counted, beyond, prepare=one_pixel)
    assert sorted(decoded.pictures_KCHW) == list(range(num_frames))
    assert bool(decoded.errors) == (path.name in BEHIND_ERRORS)
    (clip,) = read(path, Sampling(num_frames=num_frames + 4), prepare=one_pixel)
    broken = path.name in {"bad_truncated_half.avi", "bad_truncated_half.webm", *BEHIND_ERRORS}
    assert any(f"but yields only {num_frames}" in warning for warning in clip.warnings) == broken
    assert any("the file is damaged" in warning for warning in clip.warnings) == (path.name in BEHIND_ERRORS)
    (clip,) = read(path, Sampling(num_frames=2))
    last = {"decord_corrupted.mp4": 49, "bad_bitflips.mp4": 31}.get(path.name, num_frames - 1)
    assert clip.indices == (0, last)  # of a file that lost frames between them, both are still there
    assert clip.frames_TCHW.shape == (2, 3, info.height, info.width)


@needs_data
@each([path for path in FILES if int(expected(path)["frames"] or 0)])
def test_frames_equal_a_naive_decode_of_the_whole_file(path):
    small = Sampling(num_frames=5), Sampling(num_frames=4, mode="dense", stride=3, views=2)
    clips = [clip for sampling in small for clip in read(path, sampling)]
    assert len(clips) == 3
    if path.name == "bad_bitflips.mp4":
        pytest.skip("what a decoder makes of a damaged picture depends on where it began")
    truth = decode_naively(path, None if path.name in BEHIND_ERRORS else {i for clip in clips for i in clip.indices})
    for clip in clips:
        lost_none = path.name in BEHIND_ERRORS and not any("yields only" in line for line in clip.warnings)
        assert_same_frames(clip, dict(zip(places(path), truth.values(), strict=True)) if lost_none else truth)


@needs_data
def test_no_decoder_speaks_on_stderr():
    program = (
        "import sys\nfrom sttm.data.video.read import Sampling, read\nfrom sttm.errors import SttmError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        read(path, Sampling(4))\n    except SttmError:\n        pass\n"
    )
    noisy = [str(p) for p in FILES if p.name.startswith(("bad_", "small_", "decord_corrupted"))]
    command = [sys.executable, "-c", program, *noisy]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_short_video_repeats_its_last_frame_and_says_so(tmp_path):
    path = write_video(tmp_path / "short.mp4", 3)
    (clip,) = read(path, Sampling(num_frames=5))
    assert clip.indices == (0, 1, 2, 2, 2)
    assert torch.equal(clip.frames_TCHW[2], clip.frames_TCHW[4])
    assert clip.warnings == ("the video has 3 frames and the clip needs 5: the last is repeated",)
    assert "5x3x64x64" in repr(clip) and "tensor" not in repr(clip)


@needs_data
@each([path for path in FILES if path.suffix != ".csv"])
def test_an_open_file_is_read_as_its_path_is(path):
    """As a member of an archive is; its name stands in every message."""
    opened = io.BytesIO(path.read_bytes())
    opened.seek(0, io.SEEK_END)
    if int(expected(path)["frames"] or 0) == 0:
        for look in (probe, lambda source: read(source, Sampling(5))):
            with pytest.raises(SttmError) as from_path:
                look(path)
            with pytest.raises(SttmError) as from_file:
                look(OpenFile(opened, str(path)))
            assert str(from_file.value) == str(from_path.value)
        return
    assert probe(OpenFile(opened, str(path))) == probe(path)
    (ours,), (theirs,) = read(OpenFile(opened, "shard.tar/key"), Sampling(5)), read(path, Sampling(5))
    assert torch.equal(ours.frames_TCHW, theirs.frames_TCHW)
    assert (ours.indices, ours.timestamps, ours.warnings) == (theirs.indices, theirs.timestamps, theirs.warnings)
    assert ours.path == "shard.tar/key"
    assert not opened.closed
