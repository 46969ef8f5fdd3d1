"""The cache: what is read from it equals what the file gives."""

import io
import re

import numpy as np
import pytest
import torch

from sttm.data.video.cache import VideoCache
from sttm.data.video.container import OpenFile
from sttm.data.video.read import Sampling, read
from sttm.errors import SttmError


def test_the_cache_answers_as_every_file_does(shared_data):
    """Also of files that end early, change their size or are turned, and of archives' members."""
    seen = 0
    ends_early = shared_data / "clips" / "decord_corrupted.mp4"
    for path in [ends_early, *sorted((shared_data / "clips-made").glob("*"))]:
        cache = VideoCache(2**30)
        for seed in range(3):
            rngs = [np.random.default_rng(seed) for _ in range(3)]
            sampling = Sampling(5, ("uniform", "dense")[seed % 2], 2 if seed % 2 else 1)
            try:
                (plain,) = read(path, sampling, rng=rngs[0])
            except SttmError as error:
                with pytest.raises(SttmError, match=re.escape(str(error))):
                    read(path, sampling, rng=rngs[1], cache=cache)
                continue
            (cached,) = read(path, sampling, rng=rngs[1], cache=cache)
            (member,) = read(OpenFile(io.BytesIO(path.read_bytes()), str(path)), sampling, rng=rngs[2])
            for other in (cached, member):
                assert other.indices == plain.indices and torch.equal(other.frames_TCHW, plain.frames_TCHW)
                assert (other.timestamps, other.path) == (plain.timestamps, plain.path)
            seen += 1
    assert seen > 50
