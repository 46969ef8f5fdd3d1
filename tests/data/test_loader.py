"""Reading ahead: the same clips whatever the workers, the start, the processes, the cache; nothing replaced."""

import gc
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from sttm.config.settings import Settings
from sttm.data.datasets.video_set import Video, VideoSet
from sttm.data.loader import Batch, read_ahead, training_batches
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video import decoders
from sttm.data.video.cache import Kept
from sttm.data.video.read import Sampling, read
from sttm.errors import SttmError

PREPROCESS = Preprocess("VideoMAE", Sampling(4), 32, (32, 32), 1 / 255, 0.0, (0.5,) * 3, (0.5,) * 3)
NUM_VIDEOS = 10
RANDOM: dict[str, Any] = {"randaugment": 1, "erasing": 0.3}


def write(path: Path, seed: int, num_frames: int = 12) -> Path:
    """A short noisy video in which every frame is different."""
    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        stream.thread_count, stream.options = 1, {"x264-params": "keyint=4:scenecut=0"}
        for _ in range(num_frames):
            image = np.kron(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> VideoSet:
    folder = tmp_path_factory.mktemp("videos")
    paths = [write(folder / f"{i}.mp4", i) for i in range(NUM_VIDEOS)]
    return VideoSet(
        videos=tuple(Video(str(path), i % 3) for i, path in enumerate(paths)),
        classes=("a", "b", "c"),
        missing=(),
        layout="",
        direction_sensitive=False,
    )


@pytest.fixture
def with_a_bad_one(videos, tmp_path) -> VideoSet:
    (bad := tmp_path / "bad.mp4").write_bytes(b"no video at all" * 50)
    return replace(videos, videos=(*videos.videos[:5], Video(str(bad), 1), *videos.videos[6:]))


def settings(batch_size: int = 8, seed: int = 3, cache_gib: float = 0.0, **augment: Any) -> Settings:
    return Settings.model_validate(
        {
            "data": {"cache_gib": cache_gib},
            "model": {"family": "videomae"},
            "augment": augment,
            "optimizer": {"steps": 10, "batch_size": batch_size},
            "run": {"output": "out", "seed": seed},
        }
    )


def load(videos: VideoSet, told: Settings, *, steps=(0, 4), rank=0, world=1, micro_batch=None, workers=0):
    micro_batch = micro_batch or told.optimizer.batch_size // world
    first_step, last_step = steps
    return list(
        training_batches(
            videos,
            PREPROCESS,
            told,
            first_step=first_step,
            last_step=last_step,
            rank=rank,
            world=world,
            micro_batch=micro_batch,
            workers=workers,
        )
    )


def same(a: Batch, b: Batch) -> bool:
    tensors = ("pixels_BTCHW", "targets_BK", "weight_B")
    return (a.files, a.errors) == (b.files, b.errors) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in tensors
    )


def flat(steps: list[list[Batch]]) -> list[Batch]:
    return [batch for step in steps for batch in step]


def all_same(a: list[list[Batch]], b: list[list[Batch]]) -> bool:
    return len(flat(a)) == len(flat(b)) > 0 and all(same(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def by_file(batches: list[Batch]) -> dict[str, list[tuple[bytes, bytes]]]:
    """Pixels and targets of each file's clips, of which there are several where they repeat or a new epoch begins."""
    found: dict[str, list[tuple[bytes, bytes]]] = {}
    for batch in batches:
        for file, pixels, targets in zip(batch.files, batch.pixels_BTCHW, batch.targets_BK, strict=True):
            found.setdefault(file, []).append((pixels.numpy().tobytes(), targets.numpy().tobytes()))
    return {file: sorted(clips) for file, clips in found.items()}


def record_surveys(monkeypatch) -> list[str]:
    """The paths of the files that are opened from now on."""
    opened: list[str] = []
    survey = decoders.survey

    def recorded(path):
        opened.append(str(path))
        return survey(path)

    monkeypatch.setattr(decoders, "survey", recorded)
    return opened


# --- The stream ---------------------------------------------------------------------------------------------


def test_workers_change_nothing_nor_does_the_global_generator(videos):
    told = settings(mixup=0.8, cutmix=1.0, **RANDOM)
    state = torch.get_rng_state()
    alone = load(videos, told)
    assert all_same(load(videos, told, workers=1), alone)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - it must not matter
    assert all_same(load(videos, told, workers=3, micro_batch=8), alone)
    torch.set_rng_state(state)


def test_it_goes_on_anywhere(videos):
    told = settings(batch_size=6, **RANDOM)
    whole = load(videos, told, steps=(0, 5))
    assert all_same(load(videos, told, steps=(3, 5), workers=2), whole[3:])
    assert load(videos, told, steps=(2, 2)) == []


@pytest.mark.parametrize("repeats", [1, 2])
def test_processes_and_micro_batches_share_one_global_batch(videos, repeats):
    told = settings(batch_size=16, repeats=repeats, mixup=0.8, cutmix=1.0, **RANDOM)
    whole = load(videos, told, steps=(0, 3))
    for world, micro_batch in ((1, 4), (2, 8), (2, 4)):
        ranks = [
            load(videos, told, steps=(0, 3), rank=rank, world=world, micro_batch=micro_batch) for rank in range(world)
        ]
        for step, batches in enumerate(whole):
            parts = [batch for rank in ranks for batch in rank[step]]
            assert sum(len(batch.files) for batch in parts) == 16
            assert all(len(batch.files) == micro_batch for batch in parts)
            assert by_file(parts) == by_file(batches)


def test_an_epoch_shows_every_video_once(videos):
    for repeats in (1, 2):
        told = settings(batch_size=4, repeats=repeats)
        steps = 2 * NUM_VIDEOS * repeats // 4  # two epochs, the first of which ends within a step if repeats = 1
        shown = [file for batch in flat(load(videos, told, steps=(0, steps))) for file in batch.files[: 4 // repeats]]
        first, second = shown[:NUM_VIDEOS], shown[NUM_VIDEOS : 2 * NUM_VIDEOS]
        paths = {video.path for video in videos.videos}
        assert set(first) == set(second) == paths and first != second
        assert len(shown) == 2 * NUM_VIDEOS


def test_repeats_are_different_views_of_one_decoded_video(videos, monkeypatch):
    decoded = record_surveys(monkeypatch)
    ((batch,),) = load(videos, settings(batch_size=6, repeats=3), steps=(0, 1))
    assert batch.files == batch.files[:2] * 3 and decoded == batch.files[:2]
    clips = batch.pixels_BTCHW
    assert not torch.equal(clips[0], clips[2]) and not torch.equal(clips[2], clips[4])
    assert torch.equal(batch.targets_BK[0], batch.targets_BK[4])


def test_seed_and_epoch_change_order_frames_and_variation(videos):
    a, b = (load(videos, settings(seed=seed, batch_size=10), steps=(0, 2)) for seed in (0, 1))
    assert a[0][0].files != b[0][0].files
    first, second, other = (by_file(step) for step in (a[0], a[1], b[0]))
    for file in first:
        assert len({first[file][0][0], second[file][0][0], other[file][0][0]}) == 3
    told = settings(batch_size=10, crop="centre", flip=0.0)  # frames alone
    first, second = (by_file(step) for step in load(videos, told, steps=(0, 2)))
    (other,) = (
        by_file(step) for step in load(videos, settings(seed=4, batch_size=10, crop="centre", flip=0.0), steps=(0, 1))
    )
    assert sum(first[file] != second[file] for file in first) > 7
    assert sum(first[file] != other[file] for file in first) > 7


def test_clips_of_a_batch_are_varied_each_in_its_own_way(videos):
    """Ten times the same video, whole, so that only the variation can tell clips apart."""
    prepare, same_video = replace(PREPROCESS, sampling=Sampling(12)), replace(videos, videos=videos.videos[:1] * 10)
    arguments: dict[str, Any] = {
        "first_step": 0,
        "last_step": 1,
        "rank": 0,
        "world": 1,
        "micro_batch": 10,
        "workers": 0,
    }
    ((batch,),) = training_batches(same_video, prepare, settings(batch_size=10), **arguments)
    assert len({clip.numpy().tobytes() for clip in batch.pixels_BTCHW}) == 10
    alone = replace(videos, videos=videos.videos[:1])
    seeds = [load(alone, settings(seed=seed, crop="centre", flip=0.0), steps=(0, 1)) for seed in (0, 1)]
    assert not all_same(*seeds)  # frames follow the seed too


def test_targets_are_the_labels_and_no_clip_is_mirrored_where_sides_count(videos):
    told = settings(batch_size=10, crop="centre", flip=1.0)
    by_path = {video.path: video.label for video in videos.videos}
    ((mirrored,),) = load(videos, told, steps=(0, 1))
    ((straight,),) = load(replace(videos, direction_sensitive=True), told, steps=(0, 1))
    assert torch.equal(straight.pixels_BTCHW, mirrored.pixels_BTCHW.flip(-1))
    assert straight.targets_BK.tolist() == [np.eye(3)[by_path[file]].tolist() for file in straight.files]
    assert straight.weight_B.tolist() == [1] * 10 and straight.errors == []


def test_training_frames_are_normalised_as_in_evaluation(videos):
    """With as many frames as the file has, nothing is left to draw."""
    prepare, told = replace(PREPROCESS, sampling=Sampling(12)), settings(batch_size=10, crop="centre", flip=0.0)
    arguments: dict[str, Any] = {
        "first_step": 0,
        "last_step": 1,
        "rank": 0,
        "world": 1,
        "micro_batch": 10,
        "workers": 0,
    }
    ((batch,),) = training_batches(videos, prepare, told, **arguments)
    expected = {r.path: r.pixels_VTCHW for r in read_ahead(videos.videos, prepare, (1, 1), 1)}
    for file, pixels in zip(batch.files, batch.pixels_BTCHW, strict=True):
        whole = expected[file]
        assert whole is not None and torch.equal(pixels, whole[0])


# --- What cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_video_weighs_nothing_and_is_told(with_a_bad_one, workers):
    told = settings(batch_size=20, repeats=2, mixup=1.0)
    ((batch,),) = load(with_a_bad_one, told, steps=(0, 1), workers=workers)
    bad = with_a_bad_one.videos[5].path
    places = [i for i, file in enumerate(batch.files) if file == bad]
    assert len(places) == 2 and batch.weight_B.tolist() == [float(i not in places) for i in range(20)]
    assert batch.pixels_BTCHW[places].abs().sum() == 0
    ((path, reason),) = batch.errors
    assert path == bad and "is not a readable video" in reason
    torch.testing.assert_close(batch.targets_BK.sum(1), torch.ones(20))


def test_sizes_that_do_not_divide(videos):
    for arguments, told, says in (
        ({"micro_batch": 3}, settings(), "batch_size=8 cannot be shared"),
        ({"world": 3, "micro_batch": 2}, settings(), "multiple of 6"),
        ({"micro_batch": 1}, settings(repeats=2), "multiple of augment.repeats=2"),
        ({"micro_batch": 1}, settings(mixup=0.8), "pairs"),
        ({"micro_batch": 2}, settings(repeats=2, cutmix=0.8), "pairs"),
    ):
        with pytest.raises(SttmError, match=says) as caught:
            load(videos, told, **arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(SttmError, match="no video to train on"):
        load(replace(videos, videos=()), settings())
    with pytest.raises(SttmError, match="has no label"):
        load(replace(videos, videos=(replace(videos.videos[0], label=None),)), settings())


# --- The cache ----------------------------------------------------------------------------------------------


def test_the_cache_changes_nothing_but_decodes_once(videos, with_a_bad_one, monkeypatch):
    told = settings(batch_size=10, **RANDOM)
    plain = load(with_a_bad_one, told, steps=(0, 3))
    surveyed = record_surveys(monkeypatch)
    cached = load(with_a_bad_one, settings(batch_size=10, cache_gib=1.0, **RANDOM), steps=(0, 3))
    assert all_same(cached, plain)
    assert set(Counter(surveyed).values()) == {1, 3}  # the bad one is tried again each time
    some = 2.5 * 12 * 3 * 48 * 40 / 2**30  # room for two of ten
    surveyed.clear()
    assert all_same(load(with_a_bad_one, settings(batch_size=10, cache_gib=some, **RANDOM), steps=(0, 3)), plain)
    assert Counter(Counter(surveyed).values())[1] == 2


def test_the_cache_answers_as_every_file_does(shared_data):
    """Also of files that end early, change their size or are turned, and of archives' members."""
    seen = 0
    ends_early = shared_data / "clips" / "decord_corrupted.mp4"
    for path in [ends_early, *sorted((shared_data / "clips-made").glob("*"))]:
        kept = Kept(2**30)
        for seed in range(3):
            draws = [np.random.default_rng(seed) for _ in range(3)]
            sampling = Sampling(5, ("uniform", "dense")[seed % 2], 2 if seed % 2 else 1)
            try:
                (plain,) = read(path, sampling, draw=draws[0])
            except SttmError as error:
                with pytest.raises(SttmError, match=re.escape(str(error))):
                    read(path, sampling, draw=draws[1], kept=kept)
                continue
            (cached,) = read(path, sampling, draw=draws[1], kept=kept)
            (member,) = read(io.BytesIO(path.read_bytes()), sampling, draw=draws[2], name=str(path))
            for other in (cached, member):
                assert other.indices == plain.indices and torch.equal(other.frames_TCHW, plain.frames_TCHW)
                assert (other.timestamps, other.path) == (plain.timestamps, plain.path)
            seen += 1
    assert seen > 50


# --- Processes ----------------------------------------------------------------------------------------------


def open_stream(videos: VideoSet, workers: int = 2, last_step: int = 10**6):
    return training_batches(
        videos, PREPROCESS, settings(batch_size=2), first_step=0, last_step=last_step, rank=0, world=1, micro_batch=2,
        workers=workers,
    )  # fmt: skip


def test_workers_end_with_the_stream_and_with_an_exception(videos):
    stream = open_stream(videos)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []

    def fail() -> None:
        for _ in open_stream(videos):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_one_sentence_at_the_next_step_and_not_before(videos):
    handler = signal.getsignal(signal.SIGCHLD)
    stream = open_stream(videos)
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == handler
    for child in multiprocessing.active_children():
        child.kill()
    time.sleep(0.2)  # a step of training goes on undisturbed
    with pytest.raises(SttmError, match="worker process that decodes videos has died") as caught:
        for _ in range(9):  # some are waiting already
            next(stream)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_a_worker_that_died_with_a_lock_in_its_hands_does_not_hold_up_the_end(videos, monkeypatch):
    """It may hold the lock of torch's event for the end, which it looks at all the time."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Iterator

    events: list[Any] = []
    start = Iterator._try_get_data

    def seen(self, *arguments):
        events.append(self._workers_done_event)
        return start(self, *arguments)

    monkeypatch.setattr(Iterator, "_try_get_data", seen)
    stream = open_stream(videos)
    next(stream)
    assert events[0]._cond.acquire(timeout=10)  # as a process does that is then killed
    stream.close()
    assert multiprocessing.active_children() == []


def test_workers_leave_signals_to_their_parent(videos):
    """Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent decides what to do about it."""
    stream = open_stream(videos)
    next(stream)
    for child in multiprocessing.active_children():
        assert child.pid
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    for _ in range(12):
        next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []


def test_ctrl_c_leaves_no_process_and_no_traceback_of_a_worker(videos, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, signal, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from tests.data.test_loader import *\n"
        "videos = VideoSet(tuple(Video(path, 0) for path in sys.argv[1:]), ('a',), (), '', False)\n"
        "try:\n"
        "    for step, _ in enumerate(open_stream(videos)):\n"
        "        if step == 3:\n"
        "            os.killpg(0, signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', multiprocessing.active_children())\n"
    )
    command = [sys.executable, "-W", "error", str(program), *[video.path for video in videos.videos]]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("stopped []\n", "", 0)


def test_no_warning_with_more_workers_than_cores(videos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(open_stream(videos, workers=(os.cpu_count() or 1) + 1, last_step=2))) == 2


# --- Evaluation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_evaluation_reads_every_video_in_order(with_a_bad_one, workers):
    readings = list(read_ahead(with_a_bad_one.videos, PREPROCESS, (2, 3), workers))
    assert [reading.index for reading in readings] == list(range(NUM_VIDEOS))
    assert [(r.path, r.label) for r in readings] == [(v.path, v.label) for v in with_a_bad_one.videos]
    for reading, video in zip(readings, with_a_bad_one.videos, strict=True):
        if reading.index == 5:
            assert reading.pixels_VTCHW is None and "is not a readable video" in str(reading.error)
            continue
        clips = read(video.path, Sampling(4, views=2))
        expected = torch.cat([PREPROCESS(clip.frames_TCHW, crops=3) for clip in clips])
        assert (
            reading.pixels_VTCHW is not None
            and torch.equal(reading.pixels_VTCHW, expected)
            and reading.error is None
            and reading.warnings == ()
        )


def test_evaluation_reads_a_bounded_way_ahead_and_its_threads_end(videos):
    reads = []

    class Watched:
        path, label = "x", 0

        def read(self, sampling):
            reads.append(1)
            return read(videos.videos[0].path, sampling)

    before = threading.active_count()
    stream = read_ahead([Watched()] * 200, PREPROCESS, (1, 1), 2)
    next(stream)
    time.sleep(0.3)
    assert len(reads) < 60
    stream.close()
    assert threading.active_count() == before
    assert len(reads) < 60


def test_a_defect_in_reading_costs_one_video(videos):
    class Broken:
        path, label = "broken", 0

        def read(self, sampling):
            raise IndexError("of ours")

    first, second = read_ahead([Broken(), videos.videos[0]], PREPROCESS, (1, 1), 1)
    assert first.error == "reading it failed unexpectedly: IndexError: of ours"
    assert second.error is None
