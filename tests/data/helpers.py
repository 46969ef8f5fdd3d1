"""Helpers of the tests that need videos, lists of them, or batches."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from sttm.config.sections import DataSettings
from sttm.config.settings import Settings
from sttm.data.datasets.video_set import VideoSet
from sttm.data.loader import Batch, training_batches
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Clip, Sampling
from sttm.synth.videos import encode

# --- Videos -------------------------------------------------------------------------------------------------


def moving_square(index: int, size: int = 64) -> np.ndarray:
    """Return a picture that tells its index: noise of its own seed, and a bright square that moves."""
    image = np.random.default_rng(index).integers(0, 64, (size, size, 3), dtype=np.uint8)
    image[(3 * index) % 48 :][:16, (5 * index) % 48 :][:, :16] = 230
    return image


def write_video(
    path: Path,
    num_frames: int,
    *,
    options: dict[str, str] | None = None,
    turn: tuple[float, bool] | None = None,
    times: list[int] | None = None,
) -> Path:
    """Write an h264 video of 64x64 pixels whose frames are `moving_square`.

    Args:
        options: of the encoder.
        turn: degrees and mirror of the display matrix.
        times: when each frame is shown, in hundredths of a second.
    """
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
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


def write_noise_video(path: Path, seed: int, num_frames: int = 12) -> Path:
    """Write a short h264 video of 48x40 pixels in which every frame is different."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        stream.thread_count, stream.options = 1, {"x264-params": "keyint=4:scenecut=0"}
        for _ in range(num_frames):
            image = np.kron(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def decode_naively(path: Path, wanted: set[int] | None = None) -> dict[int, np.ndarray]:
    """Decode all frames in order with PyAV alone, past errors; return the wanted ones, upright and over white."""
    kept: dict[int, np.ndarray] = {}
    index = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with suppress(av.InvalidDataError):
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)
                    if wanted is None or index in wanted:
                        kept[index] = _upright(frame)
                    index += 1
    return kept


def places(path: Path) -> list[int]:
    """Return the place of each frame that can be decoded among the packets of the file, in display order."""
    times: list[int] = []
    shown: list[int] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            times += [packet.pts] if packet.size and packet.pts is not None else []
            with suppress(av.InvalidDataError):
                shown += [frame.pts for frame in packet.decode() if frame.pts is not None]
    return [sorted(times).index(time) for time in shown]


def _upright(frame: av.VideoFrame) -> np.ndarray:
    if frame.format.name == "bgra":
        white = frame.to_ndarray(format="rgba").astype(np.float64)
        alpha = white[..., 3:] / 255
        return np.rint(white[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    image = frame.to_image()
    return np.asarray(image.rotate(frame.rotation, expand=True))  # Pillow turns counter-clockwise too


def damage(path: Path, packets: set[int]) -> Path:
    """Overwrite the contents of some packets, by number, so that they cannot be decoded."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for number, packet in enumerate(container.demux(video=0)):
            if number in packets:
                start = data.index(bytes(packet))
                data[start : start + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path


def assert_same_frames(clip: Clip, truth: dict[int, np.ndarray]) -> None:
    """Compare a clip with frames HWC by index."""
    for frame_CHW, index in zip(clip.frames_TCHW, clip.indices, strict=True):
        np.testing.assert_array_equal(frame_CHW.permute(1, 2, 0).numpy(), truth[index])


# --- Data sets ----------------------------------------------------------------------------------------------


def data_settings(**sections: Any) -> DataSettings:
    return DataSettings.model_validate(sections)


def touch(root: Path, *paths: str) -> None:
    """Make empty files."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def paths_and_classes(videos: VideoSet, root: Path) -> list[tuple[str, str | None]]:
    """Return the paths from the root with the names of their classes."""
    names = [None if video.label is None else videos.classes[video.label] for video in videos.videos]
    return [(str(Path(v.path).relative_to(root)), name) for v, name in zip(videos.videos, names, strict=True)]


def make_table(root: Path, *, there: int = 20, listed: int = 20, **data: Any) -> DataSettings:
    """List clips 0..listed-1 of four classes in turn in a csv; the first `there` of them exist, empty."""
    names = ("hop", "run", "sit", "wave")
    touch(root, *(f"v/{i}.mp4" for i in range(there)))
    rows = (f"v/{i}.mp4,{names[i % 4]},{'train' if i < 16 else 'test'},{i % 3}" for i in range(listed))
    path = write_lines(root / "l.csv", "path,label,split,fold", *rows)
    return data_settings(root=root, train={"list": path}, test={"list": path}, **data)


def make_csv_set(root: Path, counts: dict[str, int], *, frames: int = 8) -> None:
    """Make `counts` different videos a split, of the classes hop and run in turn, and the csv l.csv that lists them."""
    rows, level = ["path,label,split"], 0
    (root / "v").mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        for number in range(count):
            level += 9
            encode(np.full((frames + number, 32, 32, 3), level % 256, np.uint8), root / f"v/{split}{number}.mp4")
            rows.append(f"v/{split}{number}.mp4,{('hop', 'run')[number % 2]},{split}")
    (root / "l.csv").write_text("\n".join(rows), encoding="utf-8")


# --- Training batches ---------------------------------------------------------------------------------------

PREPROCESS = Preprocess("VideoMAE", Sampling(4), 32, (32, 32), 1 / 255, 0.0, (0.5,) * 3, (0.5,) * 3)


def loader_settings(batch_size: int = 8, seed: int = 3, cache_gib: float = 0.0, **augment: Any) -> Settings:
    return Settings.model_validate(
        {
            "data": {"cache_gib": cache_gib},
            "model": {"family": "videomae"},
            "augment": augment,
            "optimizer": {"steps": 10, "batch_size": batch_size},
            "run": {"output": "out", "seed": seed},
        }
    )


def batch_stream(videos: VideoSet, workers: int = 2, last_step: int = 10**6) -> Generator[list[Batch]]:
    """Open a long stream of batches of two clips."""
    return training_batches(
        videos, PREPROCESS, loader_settings(batch_size=2), first_step=0, last_step=last_step, rank=0, world=1,
        micro_batch=2, workers=workers,
    )  # fmt: skip
