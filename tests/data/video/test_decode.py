"""Decoding: the same frames by seeking as in order, upright, over white and of one size."""

import io
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
import torch

from sttm.data.video import decode
from sttm.data.video import read as reading
from sttm.data.video.cache import VideoCache
from sttm.data.video.read import Sampling, read
from sttm.data.video.timeline import read_timeline
from sttm.errors import SttmError
from tests.data.helpers import assert_same_frames, damage, decode_naively, moving_square, write_video


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
    timeline = read_timeline(path)
    assert len(timeline.times) == 300
    truth = decode_naively(path)
    for wanted in ([0, 99, 199, 299], [150], [37, 38, 222], [299]):
        jumped = decode._decode_by_seeking(path, timeline, wanted)
        if "intra-refresh" not in x264:  # there, a key frame alone does not suffice: decoding in order is right
            assert jumped is not None
        decoded = jumped or decode.decode(path, timeline, wanted)
        assert sorted(decoded.pictures_KCHW) == wanted
        for index, (frame_CHW,) in decoded.pictures_KCHW.items():
            np.testing.assert_array_equal(frame_CHW.permute(1, 2, 0).numpy(), truth[index])


def test_jumps_are_left_where_they_do_not_pay_or_go_astray(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", 60, options={"x264-params": "keyint=10:scenecut=0"})
    timeline = read_timeline(path)
    assert decode._decode_by_seeking(path, timeline, [0, 1, 2]) is None
    shifted = replace(timeline, times=tuple(time + 1 for time in timeline.times))
    assert decode._decode_by_seeking(path, shifted, [45]) is None
    assert not decode.decode(path, shifted, [45]).pictures_KCHW  # known by their times; `read` then counts instead
    monkeypatch.setattr(reading, "read_timeline", lambda _: shifted)
    (clip,) = read(path, Sampling(1, "dense"))
    assert clip.indices == (29,)
    assert_same_frames(clip, decode_naively(path, {29}))


def test_only_sampled_frames_become_pixels_and_few_are_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", 300, options={"x264-params": "keyint=10:scenecut=0"})
    painted, decoded = [], []
    paint, frames_of = decode.ToTensor.__call__, decode.FrameReader.__iter__

    def recorded(self, frame):
        painted.append(frame.pts)
        return paint(self, frame)

    def counted(self):
        for frame in frames_of(self):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode.ToTensor, "__call__", recorded)
    monkeypatch.setattr(decode.FrameReader, "__iter__", counted)
    (clip,) = read(path, Sampling(num_frames=4))
    assert clip.indices == (0, 99, 199, 299)
    assert len(painted) == len(set(clip.indices)) == 4
    assert len(decoded) <= 4 * 10


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
    assert_same_frames(clip, decode_naively(path))


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


@pytest.mark.parametrize("swapped", [False, True])
def test_every_level_of_every_alpha_is_rounded_over_white(swapped):
    alpha, level = np.meshgrid(np.arange(256), np.arange(256))
    image = np.stack([level, 255 - level, level // 2, alpha], -1).astype(np.uint8)
    colours, share = image[..., :3].astype(float), image[..., 3:] / 255
    wanted = np.round(colours * share + 255 * (1 - share))
    given = image[..., [2, 1, 0, 3]] if swapped else image
    assert np.array_equal(decode._over_white(given, swapped), wanted)
    assert np.array_equal(decode._over_white(given[:, 255:], swapped), image[:, 255:, :3])  # opaque


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
    whole = decode_naively(path)
    assert_same_frames(clip, {index: whole[index + 5] for index in range(15)})


GOPS = "keyint=10:scenecut=0:bframes=0"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damage_costs_only_its_own_frames(tmp_path, suffix):
    """Every frame that can be decoded is read at its own place, by seeking, in order and from the cache alike."""
    path = damage(write_video(tmp_path / f"x{suffix}", 60, options={"x264-params": GOPS}), {23, 24})
    truth = decode_naively(path)  # 0 to 57, as a player counts them
    there = [index for index in range(60) if index not in (23, 24)]
    assert len(truth) == 58
    timeline = read_timeline(path)
    for wanted in ([0, 45, 59], [28], [22, 25, 29], [5, 26, 40]):
        decoded = decode.decode(path, timeline, wanted)
        assert sorted(decoded.pictures_KCHW) == wanted
        for index, (frame_CHW,) in decoded.pictures_KCHW.items():
            np.testing.assert_array_equal(frame_CHW.permute(1, 2, 0).numpy(), truth[there.index(index)])
        assert decoded.errors == (0 if wanted == [0, 45, 59] else 2)  # no error is seen where nothing is read


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_damaged_frame_is_sampled_around_and_told_once(tmp_path, suffix):
    path = damage(write_video(tmp_path / f"x{suffix}", 60, options={"x264-params": GOPS}), {23})
    for cache in (None, VideoCache(2**30)):
        (clip,) = read(path, Sampling(60), cache=cache)
        assert clip.indices[:25] == (*range(23), 22, 23) and clip.indices[-1] == 58  # 22 is on the screen twice as long
        assert_same_frames(clip, decode_naively(path))
        told = [line for line in clip.warnings if "damaged" in line]
        assert told == ["the file is damaged: 1 of its packets could not be decoded"]
        assert "the file announces 60 frames but yields only 59" in clip.warnings
    for seed in range(6):
        sampling, rngs = Sampling(8, "dense", 3), [np.random.default_rng(seed) for _ in range(2)]
        (plain,), (cached,) = read(path, sampling, rng=rngs[0]), read(path, sampling, rng=rngs[1], cache=cache)
        assert (plain.indices, plain.timestamps) == (cached.indices, cached.timestamps)
        assert torch.equal(plain.frames_TCHW, cached.frames_TCHW)


def test_a_file_without_a_frame_that_can_be_decoded(tmp_path):
    path = damage(write_video(tmp_path / "x.mp4", 6), set(range(6)))
    with pytest.raises(SttmError, match="yields no frame that can be decoded"):
        read(path, Sampling(2))


def test_a_container_that_fails_on_the_way_is_read_on(tmp_path):
    """A sample that the index puts behind the end of the file makes the demuxer fail, not the decoder."""
    path = write_video(tmp_path / "x.mp4", 60, options={"x264-params": GOPS})
    data = bytearray(path.read_bytes())
    start = data.index(b"stsz") + 16  # behind version, size for all and count: the size of each sample
    place = start + 4 * 59
    data[place : place + 4] = (2**24).to_bytes(4, "big")
    path.write_bytes(data)
    (clip,) = read(path, Sampling(59))
    truth = decode_naively(path)
    assert set(clip.indices) == set(range(59))
    assert_same_frames(clip, truth)


def test_prepared_frames_are_those_of_whole_ones(tmp_path):
    path = write_video(tmp_path / "x.mp4", 6)
    (whole,) = read(path, Sampling(8))
    seen = []

    def corners(frame_CHW: torch.Tensor) -> torch.Tensor:
        seen.append(frame_CHW.shape)
        return torch.stack([frame_CHW[:, :4, :4], frame_CHW[:, -4:, -4:]])

    first, second = read(path, Sampling(8), prepare=corners)
    assert torch.equal(first.frames_TCHW, whole.frames_TCHW[:, :, :4, :4])
    assert torch.equal(second.frames_TCHW, whole.frames_TCHW[:, :, -4:, -4:])
    assert first.indices == second.indices == whole.indices and first.warnings == whole.warnings
    assert len(seen) == 6  # once a frame, also of those that are repeated
