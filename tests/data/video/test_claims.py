"""Headers that claim far more than the file holds: refused, or read, in little memory."""

import subprocess
import sys
from pathlib import Path

import av
import pytest
from torch import Tensor

from sttm.data.video.claims import most_frames
from sttm.data.video.read import Sampling, probe, read
from sttm.errors import SttmError
from tests.data.helpers import write_video

MANY = 80_000_000
PROGRAM = """
import resource, sys
from sttm.config.settings import Settings
from sttm.data.datasets.check import _check_one
from sttm.data.datasets.video_set import VideoSet
from sttm.data.loader import read_ahead, training_batches
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.data.video.video import Video
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
prepare = Preprocess("VideoMAE", Sampling(16), 224, (224, 224), 1 / 255, 0.0, (0.5,) * 3, (0.5,) * 3)
video, errors = Video(sys.argv[1], 0), []
for views in ((1, 1), (1, 3)):
    (sample,) = read_ahead([video], prepare, views, 1)
    errors.append(sample.error)
errors.append(_check_one(video, prepare.sampling).error)
told = {"model": {"family": "videomae"}, "data": {}, "run": {"output": "x"}}
told |= {"optimizer": {"steps": 1, "batch_size": 4}, "augment": {"repeats": 2}}
steps = dict(first_step=0, last_step=1, rank=0, world=1, micro_batch=4, workers=0)
videos = VideoSet((video,), ("a",), (), "", False)
((batch,),) = training_batches(videos, prepare, Settings.model_validate(told), **steps)
errors.append(dict(batch.errors).get(video.path))
for error in errors:
    assert (error is not None) == (sys.argv[2] == "refused") and "unexpected" not in str(error), errors
"""
#: Prints the peak in KiB. That of getrusage begins at what the process that starts this one has.
PEAK = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(line.split()[1])
"""


def gif(width: int, height: int, padding: int = 0) -> bytes:
    """Return 35 bytes that claim a picture of this size, and padding."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    start = bytes.fromhex("474946383961") + size + bytes.fromhex("800000 000000 ffffff 2c 00000000")
    return start + size + bytes.fromhex("00 02 02 4401 00 3b") + bytes(padding)


def moving_gif(width: int, height: int, frames: int, padding: int = 4_000) -> bytes:
    """Return so many pictures of 25 bytes each, and padding."""
    start, end = gif(width, height)[:19], gif(width, height)[19:-1]
    return start + (bytes.fromhex("21f904 00 0a00 00 00") + end) * frames + bytes(padding)


def one_pixel(frame_CHW: Tensor) -> Tensor:
    return frame_CHW[None, :, :1, :1].clone()


def with_numbers(path: Path, *edits: tuple[bytes, int, int]) -> Path:
    """Overwrite 32-bit numbers of an mp4: the box, the place behind its version and flags, the number."""
    data = bytearray(path.read_bytes())
    for kind, place, number in edits:
        start = data.index(kind) + 8 + place
        data[start : start + 4] = number.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def many_samples(folder: Path) -> Path:
    """Make an mp4 whose table claims that there are so many samples of one byte, all in one chunk."""
    path = write_video(folder / "x.mp4", 12)
    return with_numbers(path, (b"stsz", 0, 1), (b"stsz", 4, MANY), (b"stsc", 8, MANY))


def many_in_a_fragment(folder: Path) -> Path:
    """Make a fragmented mp4 of which one fragment claims so many samples, none with a size of its own."""
    path, options = folder / "y.mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(write_video(folder / "x.mp4", 12))) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = bytearray(path.read_bytes())
    flags = data.index(b"trun") + 4
    data[flags : flags + 4] = b"\0\0\0\1"
    path.write_bytes(data)
    return with_numbers(path, (b"trun", 0, MANY))


@pytest.mark.parametrize("make", [many_samples, many_in_a_fragment])
def test_tables_that_claim_more_samples_than_bytes_are_refused(tmp_path, make):
    path = make(tmp_path)
    for look in (probe, lambda path: read(path, Sampling(2))):
        with pytest.raises(SttmError, match=r"announces 80,000,0\d\d frames or samples in [\d,]+ bytes, more than"):
            look(path)


def test_a_picture_that_its_bytes_cannot_hold_is_refused(tmp_path):
    (path := tmp_path / "x.gif").write_bytes(gif(8000, 4400))
    with pytest.raises(SttmError, match=r"has frames of 8000x4400 pixels but only 35 bytes, too few for one"):
        probe(path)


def test_sound_of_one_tick_a_sample_may_have_many(tmp_path):
    """PCM in a mov has an entry for each sample, of two bytes: here more of them than video frames are allowed."""
    import numpy as np

    path = tmp_path / "x.mov"
    with av.open(str(path), "w") as target, av.open(str(write_video(tmp_path / "x.mp4", 4))) as source:
        video = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("pcm_u8", rate=48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.uint8), format="u8", layout="mono")
        frame.sample_rate = 48000
        for _ in range(10):
            frame.pts = None
            target.mux(sound.encode(frame))
        target.mux(sound.encode())
    assert read(path, Sampling(4))[0].indices == (0, 1, 2, 3)


def test_a_clip_that_the_bytes_of_its_file_cannot_hold_is_refused(tmp_path):
    (path := tmp_path / "x.gif").write_bytes(moving_gif(7680, 4320, 16))
    with pytest.raises(SttmError, match=r"too few bytes for 16 frames of its size, of which 8 may be decoded; scale"):
        read(path, Sampling(16))
    assert len(read(path, Sampling(4), prepare=one_pixel)[0].indices) == 4


def test_a_real_video_may_be_as_dull_as_can_be(tmp_path):
    """One colour in 8K, and more frames of it than a file of any size may have."""
    path, grey = tmp_path / "x.mp4", av.VideoFrame(7680, 4320, "gray")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for index in range(9):
            grey.pts = index
            container.mux(stream.encode(grey.reformat(format="yuv420p")))
        container.mux(stream.encode())
    assert len(read(path, Sampling(9), prepare=one_pixel)[0].indices) == 9
    assert most_frames(7680, 4320, 13_680) >= 16  # what libvpx-vp9 makes of 16 such frames
    assert most_frames(1920, 1080, 1) > 64 and most_frames(60_000, 60_000, 1) == 1


@pytest.mark.slow
def test_a_file_with_just_enough_bytes_stays_below_a_gibibyte_too(tmp_path):
    (path := tmp_path / "x.gif").write_bytes(moving_gif(7680, 4320, 16, padding=8_500))
    program = "import sys, sttm; print(next(sttm.predict([sys.argv[1]])))" + PEAK
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "predictions" in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) < 2**20, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "outcome"),
    [
        ("huge.gif", gif(12_000, 12_000), "refused"),
        ("large.gif", gif(8_000, 4_400, padding=4_000), "read"),  # 8K, as one frame repeated
        ("clip.gif", moving_gif(7_680, 4_320, 16), "refused"),
        ("moving.gif", moving_gif(2_880, 2_880, 16), "read"),
        ("tall.gif", gif(1, 60_000), "read"),
        ("wide.gif", gif(60_000, 1), "read"),
        ("table.mp4", many_samples, "refused"),
        ("fragment.mp4", many_in_a_fragment, "refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_small_file_takes_a_gibibyte(tmp_path, name, content, outcome):
    path = tmp_path / name
    if callable(content):
        path = content(tmp_path)
    else:
        path.write_bytes(content)
    command = [sys.executable, "-c", PROGRAM + PEAK, str(path), outcome]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**20, f"{int(done.stdout) / 2**20:.2f} GiB"
