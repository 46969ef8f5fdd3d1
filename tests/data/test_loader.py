"""Loading ahead: the same clips whatever the workers, the start, the processes or the cache; nothing replaced."""

import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sttm.config.settings import Settings
from sttm.data import loader
from sttm.data.datasets import check
from sttm.data.datasets.video_set import Video, VideoSet
from sttm.data.loader import AUGMENT, FRAMES, Batch, read_ahead, training_batches
from sttm.data.transforms.augment import Augment
from sttm.data.video import cache, decode, timeline
from sttm.data.video import read as read_module
from sttm.data.video.read import Sampling, read
from sttm.data.video.timeline import Timeline
from sttm.errors import SttmError
from tests.data.helpers import PREPROCESS, loader_settings

RANDOM: dict[str, Any] = {"randaugment": 1, "erasing": 0.3}


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


def record_timelines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that takes the path of each file whose timeline is read from now on."""
    opened: list[str] = []

    def recorded(path: Any) -> Timeline:
        opened.append(str(path))
        return timeline.read_timeline(path)

    for module in (read_module, cache):
        monkeypatch.setattr(module, "read_timeline", recorded)
    return opened


def test_workers_change_nothing_nor_does_the_global_generator(videos):
    told = loader_settings(mixup=0.8, cutmix=1.0, **RANDOM)
    state = torch.get_rng_state()
    alone = load(videos, told)
    assert all_same(load(videos, told, workers=1), alone)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - it must not matter
    assert all_same(load(videos, told, workers=3, micro_batch=8), alone)
    torch.set_rng_state(state)


def test_the_stream_starts_at_any_step(videos):
    told = loader_settings(batch_size=6, **RANDOM)
    whole = load(videos, told, steps=(0, 5))
    assert all_same(load(videos, told, steps=(3, 5), workers=2), whole[3:])
    assert load(videos, told, steps=(2, 2)) == []


@pytest.mark.parametrize("repeats", [1, 2])
def test_processes_and_micro_batches_share_one_global_batch(videos, repeats):
    told = loader_settings(batch_size=16, repeats=repeats, mixup=0.8, cutmix=1.0, **RANDOM)
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
        told = loader_settings(batch_size=4, repeats=repeats)
        steps = (
            2 * len(videos.videos) * repeats // 4
        )  # two epochs, the first of which ends within a step if repeats = 1
        shown = [file for batch in flat(load(videos, told, steps=(0, steps))) for file in batch.files[: 4 // repeats]]
        first, second = shown[: len(videos.videos)], shown[len(videos.videos) : 2 * len(videos.videos)]
        paths = {video.path for video in videos.videos}
        assert set(first) == set(second) == paths and first != second
        assert len(shown) == 2 * len(videos.videos)


def test_repeats_are_different_views_of_one_decoded_video(videos, monkeypatch):
    decoded = record_timelines(monkeypatch)
    ((batch,),) = load(videos, loader_settings(batch_size=6, repeats=3), steps=(0, 1))
    assert batch.files == batch.files[:2] * 3 and decoded == batch.files[:2]
    clips = batch.pixels_BTCHW
    assert not torch.equal(clips[0], clips[2]) and not torch.equal(clips[2], clips[4])
    assert torch.equal(batch.targets_BK[0], batch.targets_BK[4])


def test_seed_and_epoch_change_order_frames_and_variation(videos):
    a, b = (load(videos, loader_settings(seed=seed, batch_size=10), steps=(0, 2)) for seed in (0, 1))
    assert a[0][0].files != b[0][0].files
    first, second, other = (by_file(step) for step in (a[0], a[1], b[0]))
    for file in first:
        assert len({first[file][0][0], second[file][0][0], other[file][0][0]}) == 3
    told = loader_settings(batch_size=10, crop="centre", flip=0.0)  # frames alone
    first, second = (by_file(step) for step in load(videos, told, steps=(0, 2)))
    (other,) = (
        by_file(step)
        for step in load(videos, loader_settings(seed=4, batch_size=10, crop="centre", flip=0.0), steps=(0, 1))
    )
    assert sum(first[file] != second[file] for file in first) > 7
    assert sum(first[file] != other[file] for file in first) > 7


def test_clips_of_a_batch_are_augmented_independently(videos):
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
    ((batch,),) = training_batches(same_video, prepare, loader_settings(batch_size=10), **arguments)
    assert len({clip.numpy().tobytes() for clip in batch.pixels_BTCHW}) == 10
    alone = replace(videos, videos=videos.videos[:1])
    seeds = [load(alone, loader_settings(seed=seed, crop="centre", flip=0.0), steps=(0, 1)) for seed in (0, 1)]
    assert not all_same(*seeds)  # frames follow the seed too


def test_targets_are_the_labels_and_no_clip_is_flipped_where_direction_matters(videos):
    told = loader_settings(batch_size=10, crop="centre", flip=1.0)
    by_path = {video.path: video.label for video in videos.videos}
    ((mirrored,),) = load(videos, told, steps=(0, 1))
    ((straight,),) = load(replace(videos, direction_sensitive=True), told, steps=(0, 1))
    assert torch.equal(straight.pixels_BTCHW, mirrored.pixels_BTCHW.flip(-1))
    assert straight.targets_BK.tolist() == [np.eye(3)[by_path[file]].tolist() for file in straight.files]
    assert straight.weight_B.tolist() == [1] * 10 and straight.errors == []


def test_training_frames_are_normalised_as_in_evaluation(videos):
    """With as many frames as the file has, nothing is left to draw."""
    prepare, told = replace(PREPROCESS, sampling=Sampling(12)), loader_settings(batch_size=10, crop="centre", flip=0.0)
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


@pytest.mark.parametrize("settings", [{"repeats": 2}, {"crop": "multi_scale", "flip": 0.5}, RANDOM])
def test_training_clips_are_those_of_whole_frames(videos, settings):
    """Frames are cropped one by one as they are decoded, which changes no pixel."""
    told = loader_settings(batch_size=10, **settings)
    ((batch,),) = load(videos, told, steps=(0, 1))
    vary, repeats = Augment(told.augment, PREPROCESS, may_flip=True), told.augment.repeats
    for number, file in enumerate(batch.files):
        repeat, position = divmod(number, 10 // repeats)
        (clip,) = read(file, PREPROCESS.sampling, rng=np.random.default_rng((3, FRAMES, position)))
        rng = np.random.default_rng((3, AUGMENT, position, repeat))
        assert torch.equal(batch.pixels_BTCHW[number], vary(clip.frames_TCHW, rng))


@pytest.mark.parametrize("use", ["training", "evaluation", "check"])
def test_no_more_than_two_whole_frames_are_held(videos, monkeypatch, use):
    alive, most = [0], [0]
    convert = decode.ToTensor.__call__

    def counted(self: Any, frame: Any) -> torch.Tensor:
        owned_HWC = convert(self, frame).permute(1, 2, 0).numpy().copy()
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(owned_HWC, lambda: alive.__setitem__(0, alive[0] - 1))
        return torch.from_numpy(owned_HWC).permute(2, 0, 1)

    monkeypatch.setattr(decode.ToTensor, "__call__", counted)
    whole = replace(PREPROCESS, sampling=Sampling(12))
    if use == "training":
        clips = loader._TrainingClips(videos, whole, loader_settings(repeats=2))
        assert not clips[[(0, 0), (1, 1)]].errors
    elif use == "evaluation":
        assert not next(read_ahead(videos.videos[:1], whole, (1, 3), 1)).error
    else:
        assert not check._check_one(videos.videos[0], whole.sampling).error
    assert 1 <= most[0] <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_video_has_no_weight_and_is_reported(with_a_bad_one, workers):
    told = loader_settings(batch_size=20, repeats=2, mixup=1.0)
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
        ({"micro_batch": 3}, loader_settings(), "batch_size=8 cannot be divided"),
        ({"world": 3, "micro_batch": 2}, loader_settings(), "multiple of 6"),
        ({"micro_batch": 1}, loader_settings(repeats=2), "multiple of augment.repeats=2"),
        ({"micro_batch": 1}, loader_settings(mixup=0.8), "pairs"),
        ({"micro_batch": 2}, loader_settings(repeats=2, cutmix=0.8), "pairs"),
    ):
        with pytest.raises(SttmError, match=says) as caught:
            load(videos, told, **arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(SttmError, match="no video to train on"):
        load(replace(videos, videos=()), loader_settings())
    with pytest.raises(SttmError, match="has no label"):
        load(replace(videos, videos=(replace(videos.videos[0], label=None),)), loader_settings())


def test_the_cache_changes_nothing_but_decodes_once(videos, with_a_bad_one, monkeypatch):
    told = loader_settings(batch_size=10, **RANDOM)
    plain = load(with_a_bad_one, told, steps=(0, 3))
    opened = record_timelines(monkeypatch)
    cached = load(with_a_bad_one, loader_settings(batch_size=10, cache_gib=1.0, **RANDOM), steps=(0, 3))
    assert all_same(cached, plain)
    assert set(Counter(opened).values()) == {1, 3}  # the bad one is tried again each time
    some = 2.5 * 12 * 3 * 48 * 40 / 2**30  # room for two of ten
    opened.clear()
    assert all_same(load(with_a_bad_one, loader_settings(batch_size=10, cache_gib=some, **RANDOM), steps=(0, 3)), plain)
    assert Counter(Counter(opened).values())[1] == 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_evaluation_reads_every_video_in_order(with_a_bad_one, workers):
    samples = list(read_ahead(with_a_bad_one.videos, PREPROCESS, (2, 3), workers))
    assert [sample.index for sample in samples] == list(range(10))
    assert [(r.path, r.label) for r in samples] == [(v.path, v.label) for v in with_a_bad_one.videos]
    for sample, video in zip(samples, with_a_bad_one.videos, strict=True):
        if sample.index == 5:
            assert sample.pixels_VTCHW is None and "is not a readable video" in str(sample.error)
            continue
        clips = read(video.path, Sampling(4, views=2))
        expected = torch.cat([PREPROCESS(clip.frames_TCHW, crops=3) for clip in clips])
        assert (
            sample.pixels_VTCHW is not None
            and torch.equal(sample.pixels_VTCHW, expected)
            and sample.error is None
            and sample.warnings == ()
        )


def test_evaluation_reads_a_bounded_way_ahead_and_its_threads_end(videos):
    reads = []

    class Watched:
        path, label = "x", 0

        def read(self, sampling, prepare):
            reads.append(1)
            return read(videos.videos[0].path, sampling, prepare=prepare)

    before = threading.active_count()
    stream = read_ahead(cast(Any, [Watched()] * 200), PREPROCESS, (1, 1), 2)
    next(stream)
    time.sleep(0.3)
    assert len(reads) < 60
    stream.close()
    assert threading.active_count() == before
    assert len(reads) < 60


def test_a_bug_in_reading_costs_one_video(videos):
    class Broken:
        path, label = "broken", 0

        def read(self, sampling, prepare):
            raise IndexError("of ours")

    first, second = read_ahead(cast(Any, [Broken(), videos.videos[0]]), PREPROCESS, (1, 1), 1)
    assert first.error == "reading it failed unexpectedly: IndexError: of ours"
    assert second.error is None


def test_an_input_that_names_no_video_is_reported_in_its_turn(videos):
    nothing = Video("*.mov", error="this pattern matches no file")
    samples = list(read_ahead([videos.videos[0], nothing, videos.videos[1]], PREPROCESS, (1, 1), 2))
    assert [(sample.path, sample.error) for sample in samples] == [
        (videos.videos[0].path, None), ("*.mov", "this pattern matches no file"), (videos.videos[1].path, None)
    ]  # fmt: skip
    for look in (nothing.probe, lambda: nothing.read(Sampling(2))):
        with pytest.raises(SttmError, match="this pattern matches no file"):
            look()
