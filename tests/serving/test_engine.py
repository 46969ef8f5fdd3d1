"""The engine behind the page: answers, limits, sentences, models that stay loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import sttm
from sttm.errors import SttmError
from sttm.evaluation.predict import predict
from sttm.serving import answers
from sttm.serving import engine as engines
from sttm.serving.engine import Engine, Limits


@pytest.fixture(scope="module")
def engine(small_model) -> Engine:
    return Engine([str(small_model), "sttm-words"])


def test_answers_are_those_of_predict_with_and_without(engine, small_model, clips):
    record = engine.classify(clips / "a.mp4", small_model.name, "sttm", 0.6).record()
    for kind, compute in (("plain", None), ("merged", 0.6)):
        (wanted,) = predict([clips / "a.mp4"], small_model, compute, top_k=3)
        assert record[kind] == [entry | {"score": pytest.approx(entry["score"])} for entry in wanted["predictions"]]
    assert record["compute"] <= 0.6 and record["method"] == "sttm" and "compute 0." in record["plan"]
    times = record["milliseconds"]
    assert min(times.values()) > 0 and record["speedup"] == pytest.approx(times["plain"] / times["merged"], rel=0.05)


def test_own_mergers_stay_where_they_meet_the_compute_and_are_replaced_with_a_note(engine, clips):
    own = engine.classify(clips / "a.mp4", "sttm-words", "sttm", round(engine.own["sttm-words"], 2))
    assert (
        own.shown.plan.learned and own.shown.twin == "sttm-words-plain" and not any("replaced" in n for n in own.notes)
    )
    other = engine.classify(clips / "a.mp4", "sttm-words", "tome", 0.6)
    assert other.shown.plan.method == "tome" and "were replaced" in other.notes[0]
    assert other.notes[0] in answers.figures(other)


def test_a_few_models_stay_loaded(engine, small_model, clips, monkeypatch):
    loads, load = [], sttm.models.load_with_preprocess

    def counted(name):
        loads.append(name)
        return load(name)

    monkeypatch.setattr("sttm.models.load_with_preprocess", counted)
    for compute in (0.5, 0.5, 0.55, 0.6, 0.65, 0.5):
        engine.classify(clips / "a.mp4", small_model.name, "random", compute)
    assert len(loads) == 5 and len(engine._loaded) == engines.KEPT


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(megabytes=0.0001), "a video of .* MB is more than this page takes, which is 0.0001 MB"),
        (Limits(seconds=0.5), "a video of 1 seconds is more than this page takes, which is 0.5 seconds"),
        (Limits(pixels=1000), "a video with frames of 64 x 48 pixels .* 1,000 pixels"),
    ],
)
def test_a_video_beyond_a_limit_is_refused_before_a_model_sees_it(
    engine, small_model, clips, monkeypatch, limits, said
):
    monkeypatch.setattr(engine, "limits", limits)
    monkeypatch.setattr(engine, "_load", lambda *_: pytest.fail("a model was asked"))
    with pytest.raises(SttmError, match=said):
        engine.classify(clips / "a.mp4", small_model.name, "sttm", 0.6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("b.mp4", {}, "b.mp4 is a web page"),
        ("absent.mp4", {}, "not here any more"),
        ("a.mp4", {"model": "sttm-wrods"}, "did you mean sttm-words?"),
        ("a.mp4", {"method": "patchmerger"}, "unknown method"),
        ("a.mp4", {"compute": 0.0}, "not from 0.1 to 0.95"),
        ("a.mp4", {"compute": None}, "not from 0.1 to 0.95"),
        ("a.mp4", {"compute": float("nan")}, "not from 0.1 to 0.95"),
    ],
)
def test_mistakes_are_sentences_without_a_path(engine, small_model, clips, name, options, said):
    given = {"model": small_model.name, "method": "sttm", "compute": 0.6} | options
    with pytest.raises(SttmError) as error:
        engine.classify(clips / name, **given)
    assert said in str(error.value) and str(clips) not in str(error.value) and "/tmp" not in str(error.value)


def test_two_folders_of_one_name_are_refused(small_model):
    with pytest.raises(SttmError, match="the same name"):
        Engine([str(small_model), f"{small_model}/../{Path(small_model).name}"])
