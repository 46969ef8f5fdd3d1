"""What `show` writes for clips of every shape."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import sttm
from sttm import models
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError
from sttm.evaluation.predict import predict
from sttm.visual import show as showing
from sttm.visual.show import Shown


@pytest.fixture(scope="module")
def merged(tmp_path_factory, small_model) -> Path:
    """The small model with mergers, saved."""
    model = sttm.load(small_model)
    sttm.apply(model, compute=0.6, layers=[1, 2])
    folder = sttm.save(model, tmp_path_factory.mktemp("merged"))
    Preprocess.from_folder(small_model).to_folder(folder)
    return folder


@pytest.fixture(scope="module")
def shown(clips, merged) -> Shown:
    network, preprocess = models.load_with_preprocess(merged)
    return showing.look(showing.read_clip(clips / "a.mp4", preprocess), network, preprocess, models.plain_twin(network))


def test_answers_are_those_of_predict_with_and_without(shown, clips, merged, small_model):
    for scores_K, model in ((shown.merged_K, merged), (shown.plain_K, small_model)):
        (record,) = predict([clips / "a.mp4"], model, top_k=3)
        wanted = [(entry["label"], pytest.approx(entry["score"])) for entry in record["predictions"]]
        assert shown.best(scores_K) == wanted
    assert "With merging: " in shown.header[1] and "the same weights" in shown.header[2]
    assert shown.record()["tokens"] == [64, *(m.frames * m.tokens for m in shown.plan.mergers)]


def test_the_twin_shares_the_weights_and_leaves_the_model_merged(merged):
    model = sttm.load(merged)
    twin, _ = models.plain_twin(model)
    assert twin.get_parameter("classifier.weight") is model.get_parameter("classifier.weight")
    assert sttm.macs(twin) > sttm.macs(model)
    learned = sttm.load("sttm-words")
    assert models.plain_twin(learned, "sttm-words")[1] == "sttm-words-plain"


@pytest.mark.parametrize("suffix", showing.SUFFIXES)
def test_each_kind_of_file_opens(shown, suffix, tmp_path):
    path = tmp_path / f"it{suffix}"
    showing.write(shown, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # and no part of it beside it
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.width > 600
    elif suffix == ".html":
        assert path.read_text().count("data:image/webp") == 4
    else:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == (8 if suffix == ".gif" else 16)


def film(path: Path, pictures_THWC: np.ndarray) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = pictures_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures_THWC:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("size", [(32, 96), (96, 32), (64, 64)])
@pytest.mark.parametrize("grey", [False, True])
def test_the_background_is_what_the_model_saw(merged, tmp_path, size, grey):
    """Wide, tall and grey clips: a bright half keeps its side, and the frame is the crop of the model."""
    picture = np.full((*size, 3), 60 if grey else (20, 90, 60), np.uint8)
    picture[:, size[1] // 2 :] = 200 if grey else (220, 120, 90)
    path = film(tmp_path / "clip.mp4", np.repeat(picture[None], 8, axis=0))
    network, preprocess = models.load_with_preprocess(merged)
    sample = showing.read_clip(path, preprocess)
    drawing = showing.look(sample, network, preprocess, models.plain_twin(network)).drawing
    assert drawing.frames_TCHW.shape[2:] == preprocess.crop
    seen_WC = np.asarray(drawing.pictures[0]).mean(0)
    assert np.abs(seen_WC[2] - picture[0, 0]).max() < 12 and np.abs(seen_WC[-3] - picture[0, -1]).max() < 12


def test_a_plain_model_is_merged_as_apply_does(clips, small_model, tmp_path):
    result = sttm.show(clips / "a.mp4", tmp_path / "a.png", model=small_model)
    assert 0.55 < result["compute"] <= showing.COMPUTE and result["output"] == str(tmp_path / "a.png")
    assert Path(result["output"]).is_file() and len(result["plain"]) == 3


@pytest.mark.parametrize(
    ("clip", "out", "compute", "said"),
    [
        ("a.mp4", "a.jpeg", None, "unknown suffix of --out '.jpeg'; did you mean .gif|choose one of .png, .mp4"),
        ("a.mp4", "none/a.png", None, "there is no folder"),
        ("b.mp4", "a.png", None, "web page"),
        ("absent.mp4", "a.png", None, "does not exist"),
        ("a.mp4", "a.png", 1.0, "apply a compute below 1"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(clips, small_model, tmp_path, clip, out, compute, said):
    with pytest.raises(SttmError, match=said):
        sttm.show(clips / clip, tmp_path / out, model=small_model, compute=compute)
    assert not list(tmp_path.iterdir())
