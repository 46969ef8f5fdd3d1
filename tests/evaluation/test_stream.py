"""Sliding windows over files, pipes and what never comes: times, order, memory, and what is said of a bad source."""

from __future__ import annotations

import io
import os
import threading
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

import sttm
from sttm.data import live, windows
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.data.windows import Sliding, Window, read_windows
from sttm.evaluation import stream as streaming
from sttm.evaluation.stream import join, sliding_of, stream_windows
from tests.data.helpers import damage
from tests.helpers import FixedModel

PREPROCESS = Preprocess("VideoMAE", Sampling(4), 32, (32, 32), 1 / 255, 0.0, (0.0,) * 3, (1.0,) * 3)


def write(target: Any, seconds: float, fps: int = 16, kind: str = "mpegts", codec: str = "mpeg2video") -> None:
    """Write a video whose grey level is its second."""
    with av.open(target, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 8
        for number in range(int(seconds * fps)):
            image = np.full((48, 64, 3), 20 * (number // fps) + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def ten_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of 16 frames each."""
    path = tmp_path_factory.mktemp("stream") / "ten.ts"
    write(str(path), 10)
    return path


def read(source: Any, sliding: Sliding, said: list[str] | None = None) -> list[Window]:
    def crop(frame_CHW: torch.Tensor) -> torch.Tensor:
        return PREPROCESS.resize_and_crop(frame_CHW[None])[0, 0]

    return list(read_windows(source, sliding, crop, (said if said is not None else []).append))


def sliding(window: int = 4, stride: int = 2, fps: float = 8, late: Any = "wait", timeout: float = 20) -> Sliding:
    return Sliding(window, stride, fps, late, timeout)


def level(window: Window) -> list[int]:
    """Return the second that each frame shows."""
    return [round((float(frame.float().mean()) - 20) / 20) for frame in window.frames]


def test_windows_are_a_stride_apart_and_share_their_frames(ten_seconds: Path) -> None:
    found = read(ten_seconds, sliding())
    assert [w.times[0] for w in found] == pytest.approx([k / 4 for k in range(39)])
    for one, other in pairwise(found):
        assert all(a is b for a, b in zip(one.frames[2:], other.frames[:2], strict=True))
        assert np.diff(one.times) == pytest.approx([1 / 8] * 3)
    assert all(level(w) == [int(t) for t in w.times] for w in found)
    assert not any(w.remarks or w.skipped for w in found)


def test_the_last_window_ends_with_the_source(ten_seconds: Path) -> None:
    found = read(ten_seconds, sliding(window=16, stride=30))
    assert [w.times[0] for w in found] == pytest.approx([0, 3.75, 7.5, 8])
    (short,) = read(ten_seconds, sliding(window=100))
    assert len(short.frames) == 100 and short.frames[79] is short.frames[99]
    assert short.remarks == ("the source has 80 frames at 8 a second and the window needs 100: the last is repeated",)


def test_a_slower_source_gives_all_its_frames(ten_seconds: Path) -> None:
    found = read(ten_seconds, sliding(fps=100, window=16, stride=16))
    assert [len(w.frames) for w in found] == [16] * 10
    assert [w.times[0] for w in found] == pytest.approx(range(10))


@pytest.mark.parametrize("kind", ["file", "stdin", "fifo", "object"])
def test_every_kind_of_source_gives_the_same(
    kind: str, ten_seconds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    source: Any = ten_seconds
    if kind == "object":
        source = io.BytesIO(ten_seconds.read_bytes())
    elif kind != "file":
        if kind == "fifo":
            os.mkfifo(source := tmp_path / "pipe")
            end = lambda: os.open(source, os.O_WRONLY)  # noqa: E731
        else:
            source, (reading, writing) = "-", os.pipe()
            monkeypatch.setattr("sys.stdin", SimpleNamespace(fileno=lambda: reading))
            request.addfinalizer(lambda: os.close(reading))
            end = lambda: writing  # noqa: E731
        data = ten_seconds.read_bytes()

        def feed() -> None:
            with os.fdopen(end(), "wb", buffering=0) as pipe:
                for start in range(0, len(data), 5000):
                    pipe.write(data[start : start + 5000])

        threading.Thread(target=feed, daemon=True).start()
    found, whole = read(source, sliding()), read(ten_seconds, sliding())
    assert [w.times for w in found] == [w.times for w in whole]
    for one, two in zip(found, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.frames, two.frames, strict=True))


@pytest.mark.parametrize("late", ["wait", "skip"])
def test_memory_does_not_grow_with_the_source(ten_seconds: Path, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    alive, most = [0], [0]

    def crop(frame_CHW: torch.Tensor) -> torch.Tensor:
        kept = np.zeros((3, 8, 8), np.uint8)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(kept, lambda: alive.__setitem__(0, alive[0] - 1))
        return torch.from_numpy(kept)

    count = 0
    for window in read_windows(ten_seconds, sliding(window=8, stride=8, fps=16, late=late), crop, lambda text: None):
        time.sleep(0.02)
        count += 1 + window.skipped
    # The ring, the window in use, the one that waits, and the one that it replaces.
    assert count == 20 and most[0] <= 4 * 8 + 1


def test_a_late_model_skips_windows_or_has_the_source_wait(ten_seconds: Path) -> None:
    def late(when: Any) -> list[Window]:
        found = []
        for window in read_windows(ten_seconds, sliding(late=when), lambda frame: frame[:, :1, :1], lambda text: None):
            found.append(window)
            time.sleep(0.5 if len(found) == 1 else 0)
        return found

    waited, skipped = late("wait"), late("skip")
    assert len(waited) == 39 and not any(w.skipped for w in waited)
    assert len(skipped) < 39 and sum(w.skipped + 1 for w in skipped) == 39
    assert skipped[-1].times == waited[-1].times


def test_damage_is_said_and_not_fatal(tmp_path: Path) -> None:
    write(str(path := tmp_path / "x.mkv"), 6, kind="matroska", codec="mpeg4")
    damage(path, {20, 21, 40})
    said: list[str] = []
    found = read(path, sliding(), said)
    remarks = [remark for window in found for remark in window.remarks]
    assert sum(int(remark.split()[0]) for remark in remarks if "damaged packet" in remark) >= 1, (remarks, said)
    assert found[-1].times[-1] == pytest.approx(5.9, abs=0.2)


def test_a_source_that_ends_in_the_middle(tmp_path: Path) -> None:
    write(str(path := tmp_path / "x.mkv"), 8, kind="matroska", codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said: list[str] = []
    found = read(path, sliding(), said)
    assert 1 < found[-1].times[-1] < 7
    assert any("of the 8.0 s that it announces" in sentence for sentence in said), said


def test_time_stamps_that_jump_back_go_on(ten_seconds: Path) -> None:
    twice = io.BytesIO(2 * ten_seconds.read_bytes())
    found = read(twice, sliding())
    times = [t for w in found for t in w.times]
    assert found[-1].times[-1] > 19 and all(np.diff([w.times[0] for w in found]) > 0), times[-1]
    assert any("time stamps jump by -" in remark for w in found for remark in w.remarks)


def test_a_pipe_that_stalls(ten_seconds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "FAREWELL", 1.0)
    os.mkfifo(pipe := tmp_path / "pipe")
    with pytest.raises(sttm.SttmError, match=r"pipe has given no frame in 0.5 s; check that it is sending") as caught:
        read(pipe, sliding(timeout=0.5))
    assert "\n" not in str(caught.value)
    data, over, said = ten_seconds.read_bytes(), threading.Event(), list[str]()

    def feed() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            over.wait(60)

    threading.Thread(target=feed, daemon=True).start()
    found = read(pipe, sliding(timeout=2), said)
    over.set()
    assert 2 < found[-1].times[-1] < 8
    assert said == [f"{pipe} gave nothing more for 2 s, and counts as ended"]


def test_nothing_is_left_running(ten_seconds: Path) -> None:
    before = set(threading.enumerate())
    found = read_windows(ten_seconds, sliding(), lambda frame: frame[:, :1, :1], lambda text: None)
    next(found)
    found.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("absent.mp4", "absent.mp4 does not exist; give a video file, a camera such as 0"),
        ("77", "there is no camera /dev/video77; "),
        ("/dev/video78", "there is no camera /dev/video78; "),
        ("gopher://x/y", "gopher://x/y is no kind of stream that is read; allowed are rtsp"),
        ("file:///etc/passwd", "is no kind of stream"),
        ("rtsp://u:secret@127.0.0.1:9/x", r"rtsp://127.0.0.1:9/x cannot be read as a video \(.+\); check the address"),
    ],
)
def test_a_source_that_is_not_there_is_one_sentence(source: str, part: str) -> None:
    with pytest.raises(sttm.SttmError, match=part) as caught:
        live.check_source(source)
        read(source, sliding(timeout=5))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"hello" * 100, b"#EXTM3U\nfile:///etc/passwd\n"])
def test_what_is_no_video_says_so(data: bytes) -> None:
    with pytest.raises(sttm.SttmError, match=r"cannot be read as a video|holds no frame"):
        read(io.BytesIO(data), sliding())


# --- Records ------------------------------------------------------------------------------------------------


def by_second(pixels_BTCHW: torch.Tensor) -> torch.Tensor:
    """Answer with the second of three that the middle of a clip shows."""
    second = ((pixels_BTCHW.mean((1, 2, 3, 4)) * 255 - 20) / 20).round().clamp(0, 2).long()
    return 9 * torch.eye(3)[second]


@pytest.fixture
def records(ten_seconds: Path) -> Callable[..., list[dict[str, Any]]]:
    model = FixedModel(by_second, ["zero", "one", "more"])
    return lambda **options: list(
        stream_windows(ten_seconds, model, PREPROCESS, sliding_of(ten_seconds, PREPROCESS, **options))
    )


def test_records_have_times_and_labels(records: Callable[..., list[dict[str, Any]]]) -> None:
    found = records()
    assert found[0].keys() == {"start", "end", "predictions", "compute", "seconds"}
    assert [(r["start"], r["end"]) for r in found[:3]] == [(0.0, 0.375), (0.25, 0.625), (0.5, 0.875)]
    best = [r["predictions"][0]["label"] for r in found]
    assert best[0] == "zero" and best[4] == "one" and best[-1] == "more"
    wide = records(window=8, stride=8)
    assert [r["start"] for r in wide] == pytest.approx(range(10)) and wide[2]["predictions"][0]["label"] == "more"


def test_windows_of_one_label_are_joined(records: Callable[..., list[dict[str, Any]]]) -> None:
    found = list(join(records(window=8, stride=8)))
    assert [(s["start"], s["end"], s["label"], s["windows"]) for s in found] == [
        (0.0, 0.875, "zero", 1), (1.0, 1.875, "one", 1), (2.0, 9.875, "more", 8)
    ]  # fmt: skip
    assert all(0.9 < s["score"] <= 1 for s in found)


def test_borders_lie_half_way_and_remarks_are_added_up() -> None:
    def record(start: float, label: str | None, **more: Any) -> dict[str, Any]:
        answer = {"error": "not finite"} if label is None else {"predictions": [{"label": label, "score": 0.5}]}
        return {"start": start, "end": start + 2, "compute": 1.0} | answer | more

    given = [
        record(0, "a"),
        record(1, "a", skipped=2),
        record(2, "b", warnings=["x"]),
        record(9, "b"),
        record(10, None),
    ]
    assert list(join(given)) == [
        {"start": 0, "end": 2.5, "label": "a", "score": 0.5, "windows": 2, "compute": 1.0, "skipped": 2},
        {"start": 2.5, "end": 10.5, "label": "b", "score": 0.5, "windows": 2, "compute": 1.0, "warnings": ["x"]},
        {"start": 10.5, "end": 12, "error": "not finite", "windows": 1, "compute": 1.0},
    ]
    assert list(join([])) == []


@pytest.mark.parametrize(
    "options", [{"window": 3}, {"window": 10**6}, {"stride": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"timeout": -1.0}]
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(sttm.SttmError, match=f"^{name}="):
        sliding_of("x.mp4", PREPROCESS, **options)


def test_cameras_and_networks_skip_and_files_wait() -> None:
    whens = [sliding_of(source, PREPROCESS).when_late for source in ("x.mp4", "-", "0", "rtsp://a/b", "/dev/video3")]
    assert whens == ["wait", "wait", "skip", "skip", "skip"]
    assert sliding_of("0", PREPROCESS, when_late="wait").when_late == "wait"


def test_from_python(ten_seconds: Path, small_model: Path) -> None:
    found = list(sttm.stream(ten_seconds, model=small_model, window=16, stride=40, top_k=2, segments=True))
    assert found[-1]["end"] == pytest.approx(9.875) and sum(s["windows"] for s in found) == 3
    assert streaming.FPS == 8
