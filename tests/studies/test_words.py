"""The study that trains the models of words: its pixels, its positions, its example clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.data.transforms.preprocess import Preprocess


@pytest.fixture
def words(study: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The study on a small grid-words, writing into a folder of its own; its batches are of two clips."""
    module, bundle = study("words"), study("harness.bundle")
    for owner, name, value in (
        (module, "CACHE", tmp_path / "words"), (module, "BUNDLE", tmp_path / "bundled"), (module, "BATCH", 2),
        (module, "MOVES", (1, 3)), (bundle, "BUNDLE", tmp_path / "bundled"), (module, "EXAMPLES", ("blue",)),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, value)
    (tmp_path / "words").mkdir()
    return module


def test_predict_sees_the_pixels_of_training(words: Any, data: Any, tmp_path: Path) -> None:
    clips = words.words_of("test")
    words.write_model(words.build(), "sttm-words", words.preprocess_of(clips))
    saved = Preprocess.from_folder(tmp_path / "bundled" / "sttm-words")
    (video,) = words_videos(data)
    (clip,) = video.read(saved.sampling)
    torch.testing.assert_close(saved(clip.frames_TCHW), clips.clips(np.arange(1), 16), atol=1e-5, rtol=1e-5)


def words_videos(data: Any) -> Any:
    from sttm.data.datasets.video_set import read_split

    return read_split(data.data_settings("grid_words"), "test").videos


def test_training_ends_with_the_positions_that_transformers_computes(words: Any) -> None:
    own = words.build().videomae.embeddings.position_embeddings
    merged = words.train_stage("merged", epochs=4)
    assert torch.equal(merged.videomae.embeddings.position_embeddings, own)
    assert sttm.macs(merged) <= 0.35 * sttm.macs(words.build())
    embeddings = words.build().videomae.embeddings
    words._move_positions(embeddings, own, 1.0)
    first = embeddings.position_embeddings
    assert not torch.allclose(first, own, atol=0.1)
    words._move_positions(embeddings, own, 2.0)
    torch.testing.assert_close(embeddings.position_embeddings, (first + own) / 2)


def test_plain_starts_from_the_merged_model(words: Any) -> None:
    merged = words.train_stage("merged", epochs=3).state_dict()
    plain = words.start_of("plain").state_dict()
    assert plain.keys() == words.build().state_dict().keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.items())


def test_examples_are_copied_as_they_are(words: Any, tmp_path: Path) -> None:
    (tmp_path / "bundled").mkdir()
    words.write_examples()
    copied = tmp_path / "bundled" / "examples" / "blue.mp4"
    assert copied.read_bytes() == (tmp_path / "data" / "grid-words" / "clips" / "4.mp4").read_bytes()
    assert "| `blue.mp4` | 4 |" in (copied.parent / "README.md").read_text()
