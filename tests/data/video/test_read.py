"""Decoding: exactly the frames that were asked for, from every file there is, or one clear sentence."""

import csv
import io
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sttm.data.video import decoders
from sttm.data.video.read import Clip, Sampling, probe, read, sample_indices
from sttm.errors import SttmError
from tests.helpers import ROOT

DATA = Path(os.environ.get("STTM_DATA", ROOT.parent / "shared" / "data"))
FOLDERS = [DATA / "clips", DATA / "clips-made"]
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*") if path.suffix != ".csv")
needs_data = pytest.mark.skipif(not FILES, reason=f"no clips under {DATA}: set STTM_DATA to the shared data")


@cache
def expected(path: Path) -> dict[str, str]:
    """What a full decode of a file gives, by an earlier and independent program."""
    with (path.parent / "probe.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["path"] == path.name)


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=lambda path: f"{path.parent.name}/{path.name}")


def naive_frames(path: Path, wanted: set[int] | None = None) -> dict[int, np.ndarray]:
    """Decode all in order, as one would at a first try; keep the wanted frames, upright and over white."""
    kept: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        try:
            for index, frame in enumerate(container.decode(video=0)):
                if wanted is None or index in wanted:
                    image = frame.to_image()
                    if frame.format.name == "bgra":
                        white = frame.to_ndarray(format="rgba").astype(np.float64)
                        alpha = white[..., 3:] / 255
                        kept[index] = np.rint(white[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
                        continue
                    if frame.rotation:  # Pillow turns counter-clockwise too
                        image = image.rotate(frame.rotation, expand=True)
                    kept[index] = np.asarray(image)
        except av.FFmpegError:
            pass
    return kept


def assert_same_frames(clip: Clip, truth: dict[int, np.ndarray]) -> None:
    for frame_CHW, index in zip(clip.frames_TCHW, clip.indices, strict=True):
        np.testing.assert_array_equal(frame_CHW.permute(1, 2, 0).numpy(), truth[index])


def moving_square(index: int, size: int = 64) -> np.ndarray:
    """A picture that tells its index: noise of its own seed, and a bright square that moves."""
    image = np.random.default_rng(index).integers(0, 64, (size, size, 3), dtype=np.uint8)
    image[(3 * index) % 48 :][:16, (5 * index) % 48 :][:, :16] = 230
    return image


def write_video(path: Path, num_frames: int, *, codec: str = "libx264", options: dict | None = None,
                turn: tuple[float, bool] | None = None, times: list[int] | None = None) -> Path:  # fmt: skip
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options, stream.thread_count = options or {}, 1
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        if times:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 100)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(moving_square(index), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# --- Every file ---------------------------------------------------------------------------------------------


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
    assert (info.rotation, info.pixel_format) == (turn, row["pix_fmt"])
    assert info.fps == pytest.approx(float(row["fps"]), abs=1e-3)
    (clip,) = read(path, Sampling(num_frames=2))
    assert clip.indices == ((0, num_frames - 1) if num_frames > 1 else (0, 0))
    assert clip.frames_TCHW.shape == (2, 3, info.height, info.width)
    broken = path.name in {"decord_corrupted.mp4", "bad_truncated_half.avi", "bad_truncated_half.webm"}
    assert any(f"but yields only {num_frames}" in warning for warning in clip.warnings) == broken


@needs_data
@each([path for path in FILES if int(expected(path)["frames"] or 0)])
def test_frames_equal_a_naive_decode_of_the_whole_file(path):
    small = Sampling(num_frames=5), Sampling(num_frames=4, mode="dense", stride=3, views=2)
    clips = [clip for sampling in small for clip in read(path, sampling)]
    assert len(clips) == 3
    truth = naive_frames(path, {i for clip in clips for i in clip.indices})
    for clip in clips:
        assert_same_frames(clip, truth)


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


# --- Jumps between key frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "x264"),
    [
        (".mp4", "keyint=20:bframes=3:open-gop=0"),
        (".mp4", "keyint=20:bframes=3:open-gop=1"),
        (".mkv", "keyint=20:bframes=3:open-gop=1:b-pyramid=normal"),
        (".mkv", "keyint=20:intra-refresh=1:bframes=0"),
        (".mp4", "keyint=1"),
    ],
)
def test_jumping_gives_the_same_frames_as_decoding_in_order(tmp_path, suffix, x264):
    path = write_video(tmp_path / f"long{suffix}", 300, options={"x264-params": f"{x264}:scenecut=0"})
    timeline = decoders.survey(path)
    assert len(timeline.times) == 300
    truth = naive_frames(path)
    for wanted in ([0, 99, 199, 299], [150], [37, 38, 222], [299]):
        jumped = decoders._decode_by_jumps(path, timeline, wanted)
        if "intra-refresh" not in x264:  # there, a key frame alone does not suffice: decoding in order is right
            assert jumped is not None
        decoded = jumped or decoders.decode_with_pyav(path, timeline, wanted)
        assert sorted(decoded.frames_CHW) == wanted
        for index, frame_CHW in decoded.frames_CHW.items():
            np.testing.assert_array_equal(frame_CHW.permute(1, 2, 0).numpy(), truth[index])


def test_jumps_are_left_where_they_do_not_pay_or_go_astray(tmp_path):
    path = write_video(tmp_path / "long.mp4", 60, options={"x264-params": "keyint=10:scenecut=0"})
    timeline = decoders.survey(path)
    assert decoders._decode_by_jumps(path, timeline, [0, 1, 2]) is None
    shifted = replace(timeline, times=tuple(time + 1 for time in timeline.times))
    assert decoders._decode_by_jumps(path, shifted, [45]) is None
    (frame_CHW,) = decoders.decode_with_pyav(path, shifted, [45]).frames_CHW.values()
    np.testing.assert_array_equal(frame_CHW.permute(1, 2, 0).numpy(), naive_frames(path, {45})[45])


def test_only_sampled_frames_become_pixels_and_few_are_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", 300, options={"x264-params": "keyint=10:scenecut=0"})
    painted, decoded = [], []
    paint, frames_in_order = decoders._Canvas.paint, decoders.frames_in_order

    def recorded(self, frame):
        painted.append(frame.pts)
        return paint(self, frame)

    def counted(container, stream):
        for frame in frames_in_order(container, stream):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoders._Canvas, "paint", recorded)
    monkeypatch.setattr(decoders, "frames_in_order", counted)
    (clip,) = read(path, Sampling(num_frames=4))
    assert clip.indices == (0, 99, 199, 299)
    assert len(painted) == clip.frames_decoded == 4
    assert len(decoded) <= 4 * 10


# --- Choosing frames ----------------------------------------------------------------------------------------


@given(num_frames=st.integers(1, 64), wanted=st.integers(1, 32), views=st.integers(1, 4))
def test_uniform_frames_are_those_of_linspace(num_frames, wanted, views):
    picks_VT = sample_indices(range(num_frames), Sampling(wanted, views=views))
    if num_frames < wanted:
        short = [*range(num_frames), *[num_frames - 1] * (wanted - num_frames)]
        assert picks_VT == [short] * views
    else:
        together = [Fraction((num_frames - 1) * k, max(wanted * views - 1, 1)) for k in range(wanted * views)]
        assert picks_VT == [[int(place) for place in together[v::views]] for v in range(views)]


def test_uniform_frames_are_those_of_transformers_pipeline():
    for num_frames in (16, 32, 100, 250, 300, 2197):
        pipeline = np.linspace(0, num_frames - 1, num=16, dtype=np.int64)
        assert sample_indices(range(num_frames), Sampling()) == [pipeline.tolist()]


@given(
    num_frames=st.integers(1, 80),
    wanted=st.integers(1, 16),
    stride=st.integers(1, 6),
    views=st.integers(1, 4),
)
def test_dense_views_keep_their_stride_and_cover_the_video(num_frames, wanted, stride, views):
    sampling = Sampling(wanted, "dense", stride, views)
    picks_VT = sample_indices(range(num_frames), sampling)
    for picks_T in picks_VT:
        assert [min(i - picks_T[0], num_frames - 1 - picks_T[0]) for i in picks_T] == [
            min(k * stride, num_frames - 1 - picks_T[0]) for k in range(wanted)
        ]
    room = num_frames - sampling.reach
    if room >= 0:
        first, last = picks_VT[0][0], num_frames - 1 - picks_VT[-1][-1]
        assert (first, last) == (0, 0) if views > 1 else abs(first - last) <= 1
    else:
        assert all(picks_T[0] == 0 for picks_T in picks_VT)


@given(gaps=st.lists(st.integers(1, 50), min_size=2, max_size=40), wanted=st.integers(2, 16))
def test_variable_rate_frames_are_on_screen_at_even_instants(gaps, wanted):
    times = np.cumsum([7, *gaps]).tolist()
    step = (times[-1] - times[0]) / len(gaps)
    even = [times[0] + i * step for i in range(len(times))]
    strays = any(abs(time - place) >= step / 2 for time, place in zip(times, even, strict=True))
    (picks,) = sample_indices(times, Sampling(wanted))
    if not strays or len(times) < wanted:
        return
    for k, picked in enumerate(picks):
        instant = times[0] + Fraction((times[-1] - times[0]) * k, wanted - 1)
        assert times[picked] <= instant
        assert picked == len(times) - 1 or times[picked + 1] > int(instant)


def test_variable_rate_file(tmp_path):
    times = [
        *range(0, 100, 2),
        *range(100, 600, 50),
    ]  # 50 quick frames in one second, then 10 slow ones in five
    path = write_video(tmp_path / "vfr.mkv", 60, times=times)
    (clip,) = read(path, Sampling(num_frames=12))
    assert clip.timestamps[0] == 0 and clip.timestamps[-1] == pytest.approx(5.5)
    gaps = np.diff(clip.timestamps)
    assert gaps.max() == pytest.approx(0.5, abs=0.021) and gaps.min() == pytest.approx(0.5, abs=0.021)
    assert_same_frames(clip, naive_frames(path))


@given(num_frames=st.integers(1, 80), wanted=st.integers(1, 16), seed=st.integers(0, 99))
def test_training_takes_a_frame_out_of_each_part_of_the_video(num_frames, wanted, seed):
    (picks_T,) = sample_indices(range(num_frames), Sampling(wanted), np.random.default_rng(seed))
    assert [picks_T] == sample_indices(range(num_frames), Sampling(wanted), np.random.default_rng(seed))
    if num_frames < wanted:
        assert [picks_T] == sample_indices(range(num_frames), Sampling(wanted))
    else:
        assert picks_T == sorted(picks_T)
        for k, index in enumerate(picks_T):
            assert k * num_frames // wanted <= index < -(-(k + 1) * num_frames // wanted)


@given(num_frames=st.integers(1, 60), wanted=st.integers(1, 8), stride=st.integers(1, 6), seed=st.integers(0, 99))
def test_training_starts_a_dense_clip_anywhere(num_frames, wanted, stride, seed):
    sampling = Sampling(wanted, "dense", stride)
    (picks_T,) = sample_indices(range(num_frames), sampling, np.random.default_rng(seed))
    room = max(num_frames - sampling.reach, 0)
    assert 0 <= picks_T[0] <= room
    assert picks_T == [min(picks_T[0] + k * stride, num_frames - 1) for k in range(wanted)]


def test_training_takes_all_frames_alike_also_of_a_changing_rate():
    draw = np.random.default_rng(0)
    uniform, dense, slow = Counter[int](), Counter[int](), Counter[str]()
    times = [*range(10), *range(10, 100, 10)]  # ten quick frames, then nine that last ten times as long
    for _ in range(2000):
        uniform.update(sample_indices(range(10), Sampling(4), draw)[0])  # parts of two and a half frames
        dense.update(sample_indices(range(10), Sampling(2, "dense", 3), draw)[0][:1])
        slow["quick"] += sum(times[i] < 10 for i in sample_indices(times, Sampling(4), draw)[0])
    assert set(uniform) == set(range(10)) and all(650 < count < 950 for count in uniform.values())  # 800 each
    assert set(dense) == set(range(7)) and all(200 < count < 370 for count in dense.values())  # 286 each
    assert 650 < slow["quick"] < 950  # a tenth of the time, a tenth of 8000


# --- Frames as they should be seen --------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_is_honoured(tmp_path, degrees, mirrored):
    plain = read(write_video(tmp_path / "plain.mp4", 2), Sampling(2))[0].frames_TCHW
    path = write_video(tmp_path / "turned.mp4", 2, turn=(degrees, mirrored))
    with av.open(str(path)) as container:
        side_data: Any = next(container.decode(video=0)).side_data
        matrix = side_data.get("DISPLAYMATRIX") or np.array([65536, 0, 0, 0, 65536], dtype="<i4").tobytes()
    a, b, _, c, d = (int(value) // 65536 for value in np.frombuffer(matrix, dtype="<i4")[:5])
    seen = read(path, Sampling(2))[0].frames_TCHW
    # Pixel by pixel after the standard: (x, y) about the centre goes to (a x + c y, b x + d y).
    y, x = torch.meshgrid(*[torch.arange(64) * 2 - 63] * 2, indexing="ij")
    goes_x, goes_y = (a * x + c * y + 63) // 2, (b * x + d * y + 63) // 2
    wanted = torch.empty_like(plain)
    wanted[:, :, goes_y, goes_x] = plain
    assert torch.equal(seen, wanted)
    assert probe(path).rotation in (degrees, -degrees % 360)


def test_transparent_pixels_are_laid_over_white(tmp_path):
    image = np.zeros((8, 8, 4), dtype=np.uint8)
    image[:, :4] = (200, 100, 50, 255)
    image[:, 4:] = (200, 100, 50, 51)
    path = tmp_path / "alpha.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=5)
        stream.width, stream.height, stream.pix_fmt = 8, 8, "rgba"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgba")))
        container.mux(stream.encode())
    frame_CHW = read(path, Sampling(1))[0].frames_TCHW[0]
    assert frame_CHW[:, 0, 0].tolist() == [200, 100, 50]
    assert frame_CHW[:, 0, 7].tolist() == [244, 224, 214]  # a fifth of the colour, four fifths of white


def test_a_size_that_changes_on_the_way_is_scaled_and_told(tmp_path):
    packets = io.BytesIO()
    for size in (64, 32):  # two elementary streams, one behind the other, are one stream that changes
        with av.open(packets_part := io.BytesIO(), "w", format="mpeg2video") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for index in range(6):
                image = moving_square(index, 64)[:size, :size].copy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        packets.write(packets_part.getvalue())
    path = tmp_path / "changes.m2v"
    path.write_bytes(packets.getvalue())
    (clip,) = read(path, Sampling(num_frames=8))
    assert clip.frames_TCHW.shape == (8, 3, 64, 64)
    assert "the size of the frames changes: all are scaled to 64x64" in clip.warnings


def test_frames_trimmed_off_by_an_edit_list_are_not_there(tmp_path):
    path = write_video(tmp_path / "whole.mp4", 20, options={"x264-params": "keyint=20:bframes=0"})
    trimmed = tmp_path / "trimmed.mp4"
    keep_negative = {"avoid_negative_ts": "disabled"}
    with av.open(str(path)) as source, av.open(str(trimmed), "w", options=keep_negative) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None and packet.duration:
                packet.pts -= 5 * packet.duration
                packet.dts -= 5 * packet.duration
                packet.stream = stream
                target.mux(packet)
    (clip,) = read(trimmed, Sampling(num_frames=4))
    assert (clip.indices, clip.warnings) == ((0, 4, 9, 14), ())
    whole = naive_frames(path)
    assert_same_frames(clip, {index: whole[index + 5] for index in range(15)})


def test_a_short_video_repeats_its_last_frame_and_says_so(tmp_path):
    path = write_video(tmp_path / "short.mp4", 3)
    (clip,) = read(path, Sampling(num_frames=5))
    assert clip.indices == (0, 1, 2, 2, 2)
    assert torch.equal(clip.frames_TCHW[2], clip.frames_TCHW[4])
    assert clip.warnings == ("the video has 3 frames and the clip needs 5: the last is repeated",)
    assert clip.frames_decoded == 3
    assert "5x3x64x64" in repr(clip) and "tensor" not in repr(clip)


@needs_data
@each([path for path in FILES if path.suffix != ".csv"])
def test_an_open_file_is_read_as_its_path_is(path):
    """As a member of an archive is; `name` stands in every message."""
    opened = io.BytesIO(path.read_bytes())
    opened.seek(0, io.SEEK_END)
    if int(expected(path)["frames"] or 0) == 0:
        for look in (probe, lambda source, **name: read(source, Sampling(5), **name)):
            with pytest.raises(SttmError) as from_path:
                look(path)
            with pytest.raises(SttmError) as from_file:
                look(opened, name=str(path))
            assert str(from_file.value) == str(from_path.value)
        return
    assert probe(opened, name=str(path)) == probe(path)
    (ours,), (theirs,) = read(opened, Sampling(5), name="shard.tar/key"), read(path, Sampling(5))
    assert torch.equal(ours.frames_TCHW, theirs.frames_TCHW)
    assert (ours.indices, ours.timestamps, ours.warnings) == (theirs.indices, theirs.timestamps, theirs.warnings)
    assert ours.path == "shard.tar/key"
    assert not opened.closed


@pytest.mark.parametrize("named", [True, False])
def test_a_playlist_in_an_archive_reaches_no_file(tmp_path, named):
    video = write_video(tmp_path / "secret.ts", 20)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:10", "#EXTINF:1,", f"file://{video}", "#EXT-X-ENDLIST", ""]
    name = "shard.tar/list.m3u8" if named else None
    with pytest.raises(SttmError, match="^shard.tar/list.m3u8 " if named else "^the open file "):
        read(io.BytesIO("\n".join(lines).encode()), Sampling(2), name=name)


# --- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.mp4", None, "does not exist"),
        ("folder.mp4", "folder", "is a folder"),
        ("empty.mp4", b"", "is empty"),
        ("page.mp4", b"\n <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        ("noise.mp4", bytes(range(256)) * 8, "is not a readable video"),
        ("text.txt", b"hello world, this is no video\n" * 9, "is not a readable video"),
        ("art.ans", b"hello world\n" * 9, "is a text file"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a readable video"),
        ("x" * 300, None, "cannot be opened"),
        ("nul\0byte", None, "cannot be opened"),
    ],
)
def test_what_is_no_video_gives_one_sentence(tmp_path, name, content, says):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for look in (probe, lambda p: read(p, Sampling())):
        with pytest.raises(SttmError, match=says) as caught:
            look(path)
        assert "\n" not in str(caught.value)


def test_an_mp4_without_its_index_and_one_with_sound_only(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 20).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: whole.index(b"moov") - 4])
    with pytest.raises(SttmError, match="cut off before its index"):
        read(cut, Sampling())
    sound = tmp_path / "sound.m4a"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SttmError, match="holds no video stream but audio"):
        read(sound, Sampling())


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_video(tmp_path / "secret.mp4", 2)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)  # rather than chmod, which does not bind the superuser
    with pytest.raises(SttmError, match="permission denied"):
        read(path, Sampling())


def test_a_name_that_looks_like_an_address(tmp_path, monkeypatch):
    write_video(tmp_path / "plain.mp4", 2).rename(tmp_path / "concat:a|b.mp4")
    monkeypatch.chdir(tmp_path)
    assert read("concat:a|b.mp4", Sampling(2))[0].indices == (0, 1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 2.5}, "num_frames=2.5"),
        ({"stride": -1}, "stride=-1"),
        ({"views": True}, "views=True"),
        ({"mode": "random"}, "choose 'uniform' or 'dense'"),
    ],
)
def test_impossible_sampling(settings, says):
    with pytest.raises(SttmError, match=says):
        Sampling(**settings)


def test_unknown_decoder(tmp_path):
    with pytest.raises(SttmError, match="choose 'pyav' or 'torchcodec'"):
        read(write_video(tmp_path / "a.mp4", 2), Sampling(), decoder="cv2")


def test_missing_torchcodec_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(SttmError, match=r"torchcodec==0\.13\.0.*pyav"):
        read(write_video(tmp_path / "a.mp4", 2), Sampling(), decoder="torchcodec")


@needs_data
@pytest.mark.parametrize("name", ["h264_bframes_longgop.mp4", "vfr.mp4", "vp9.webm", "five_frames.mp4"])
def test_torchcodec_takes_the_same_frames(name):
    try:
        import torchcodec.decoders  # noqa: F401 - the import itself is the question
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec is not usable here: {str(error).splitlines()[0]}")
    path = DATA / "clips-made" / name
    for sampling in (Sampling(8), Sampling(4, "dense", 2, views=2)):
        pairs = zip(read(path, sampling), read(path, sampling, decoder="torchcodec"), strict=True)
        for ours, theirs in pairs:
            assert ours.indices == theirs.indices
            difference = (ours.frames_TCHW.int() - theirs.frames_TCHW.int()).abs().float()
            assert difference.mean() < 2  # colours are converted by other roundings
