"""Choosing frames: those of the stated formula, at any length, rate and number of views."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttm.data.video.read import Sampling
from sttm.data.video.sampling import sample_indices
from sttm.errors import SttmError


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
