"""`sttm predict` on real files, good and bad."""

import csv
import json
from pathlib import Path

import pytest
import torch

from sttm import SttmError, apply, load, save
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import read
from sttm.evaluation.output import SUFFIXES, row_of
from sttm.synth.motions import MOTION_CLASSES
from tests.data.helpers import damage, write_video


def test_predict_gives_every_video_a_line_and_goes_on_after_a_broken_one(sttm, small_model, clips):
    outcome = sttm("predict", clips, "--model", small_model, "--json", "--top-k", "2")
    assert outcome.code == 1
    first, broken, last = outcome.records
    assert [Path(record["path"]) for record in outcome.records] == [
        clips / "a.mp4", clips / "b.mp4", clips / "deep" / "c.mkv"
    ]  # fmt: skip
    assert set(broken) == {"path", "error"} and "web page" in broken["error"]
    assert "unexpected" not in broken["error"]
    assert str(clips / "b.mp4") in outcome.err and "Traceback" not in outcome.err
    for record in (first, last):
        assert set(record) == {"path", "predictions", "compute", "frames_decoded", "seconds"}
        scores = [guess["score"] for guess in record["predictions"]]
        assert len(scores) == 2 and 1 > scores[0] > scores[1] > 0
        assert {guess["label"] for guess in record["predictions"]} < {"ant", "bee", "cat"}
        assert record["compute"] == 1 and record["frames_decoded"] == 8 and record["seconds"] > 0
    assert first["predictions"] != last["predictions"]


def test_predict_says_what_the_model_says(sttm, small_model, clips):
    from transformers import VideoMAEForVideoClassification

    preprocess = Preprocess.from_folder(small_model)
    (clip,) = read(clips / "a.mp4", preprocess.sampling)
    model = VideoMAEForVideoClassification.from_pretrained(small_model).eval()
    with torch.no_grad():
        expected = model(preprocess(clip.frames_TCHW)).logits[0].softmax(-1)
    (record,) = sttm("predict", clips / "a.mp4", "--model", small_model, "--json", "--top-k", "99").records
    scores = {guess["label"]: guess["score"] for guess in record["predictions"]}
    assert [scores[label] for label in ("ant", "bee", "cat")] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_predict_merges_when_asked(sttm, small_model, clips, dtype):
    outcome = sttm("predict", clips / "a.mp4", "--model", small_model, "--compute", "0.7", "--dtype", dtype, "--json")
    assert outcome.code == 0, outcome.err
    assert 0.5 < outcome.records[0]["compute"] <= 0.7


def test_predict_keeps_or_replaces_the_mergers_of_a_merged_model(sttm, small_model, clips, tmp_path):
    model = load(small_model)
    own = apply(model, compute=0.7).compute
    save(model, tmp_path)
    Preprocess.from_folder(small_model).to_folder(tmp_path)
    for options, least, most in (
        ([], own, own),
        (["--compute", "0.7"], own, own),
        (["--compute", "0.8"], 0.7, 0.8),
    ):
        outcome = sttm("predict", clips / "a.mp4", "--model", tmp_path, "--json", *options)
        assert outcome.code == 0, outcome.err
        assert least <= outcome.records[0]["compute"] <= most
        assert ("make way" in outcome.err) == (options == ["--compute", "0.8"])


def test_predict_prints_labels_for_people(sttm, small_model, clips):
    outcome = sttm("predict", clips / "a.mp4", clips / "b.mp4", "--model", small_model)
    assert outcome.code == 1
    assert outcome.out.splitlines()[0] == str(clips / "a.mp4")
    assert "%  ant" in outcome.out and "b.mp4" not in outcome.out
    assert "b.mp4" in outcome.err


def test_predict_reads_past_damage_and_says_so_once(sttm, small_model, tmp_path):
    path = damage(write_video(tmp_path / "x.mp4", 12), {3})
    (tmp_path / "notes.md").touch()
    outcome = sttm("predict", tmp_path, "--model", small_model, "--json", "--views", "2x1")
    (record,) = outcome.records
    assert outcome.code == 0 and record["predictions"]
    told = "the file is damaged: 1 of its packets could not be decoded"
    assert record["warnings"].count(told) == 1
    assert [line for line in outcome.err.splitlines() if "damaged" in line] == [f"sttm: warning: {path}: {told}"]
    skipped = f"sttm: warning: {tmp_path}: skipped 1 file that cannot be read as videos: notes.md"
    assert outcome.err.splitlines().count(skipped) == 1


def test_neither_batches_nor_company_change_a_prediction(sttm, small_model, clips):
    def scores(*args: object) -> list[float]:
        records = sttm("predict", *args, "--model", small_model, "--json").records
        return [guess["score"] for record in records if "error" not in record for guess in record["predictions"]]

    together = scores(clips, "--batch-size", 8)
    assert scores(clips, "--batch-size", 1) == pytest.approx(together, abs=1e-6)
    assert scores(clips / "a.mp4") + scores(clips / "deep") == pytest.approx(together, abs=1e-6)


@pytest.mark.slow
def test_predict_over_all_the_shared_clips(sttm, small_model, shared_data):
    folders = [shared_data / "clips", shared_data / "clips-made"]
    outcome = sttm("predict", *folders, "--model", small_model, "--json")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    by_path = {Path(record["path"]): record for record in outcome.records}
    videos = {path for folder in folders for path in folder.iterdir() if path.suffix not in {".csv", ".md"}}
    assert set(by_path) == videos
    for folder in folders:
        for row in csv.DictReader((folder / "probe.csv").read_text().splitlines()):
            record = by_path.get(folder / row["path"], {})
            if row["decode_error"]:  # the table's program stopped there; what can be decoded behind is classified
                assert record.get("error") or any("is damaged" in warning for warning in record["warnings"]), record
                continue
            assert ("error" in record) == (not int(row["frames"] or 0)), (row["path"], record)
            assert record.get("error") or record["frames_decoded"] == min(8, int(row["frames"])), record


def test_without_a_model_it_says_what_the_bundled_one_knows(sttm, clips):
    outcome = sttm("predict", clips / "a.mp4", clips / "b.mp4", "--json")
    good, bad = outcome.records
    warning, _, _ = outcome.err.partition("\n")
    assert warning.startswith("sttm: warning: no model was named, so this is sttm-motion")
    assert all(name in warning for name in MOTION_CLASSES) and "any other video one of these" in warning
    assert "--model" in warning and "MCG-NJU/videomae-base-finetuned-kinetics" in warning
    assert f"sttm: warning: {good['notice']}" == warning and "notice" not in bad
    assert outcome.err.count("no model was named") == 1
    named = sttm("predict", clips / "a.mp4", "--model", "sttm-motion", "--json")
    assert "no model was named" not in named.err and "notice" not in named.records[0]


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a written file, as text."""
    if path.suffix == ".jsonl":
        return [row_of(json.loads(line), 2) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_output_holds_the_records(sttm, small_model, clips, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    outcome = sttm("predict", clips, "--model", small_model, "--top-k", 2, "--output", path, "--json")
    assert outcome.code == 1 and f"the records of 3 inputs are in {path}" in outcome.err
    first, broken, last = rows_of(path)
    assert list(tmp_path.iterdir()) == [path]
    for row, record in zip((first, broken, last), outcome.records, strict=True):
        expected = row_of(record, 2)
        assert list(row) == list(expected)
        assert {k: str(v or "") for k, v in row.items()} == {k: str(v or "") for k, v in expected.items()}
    assert "web page" in broken["error"] and not broken["prediction_1"] and first["prediction_2"]
    silent = sttm("predict", clips / "a.mp4", "--model", small_model, "--output", path, "--quiet")
    assert (silent.code, silent.out, silent.err) == (0, "", "") and len(rows_of(path)) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out.txt", "unknown suffix of --output '.txt'; choose one of .jsonl, .csv, .parquet"),
        ("out.parquett", "did you mean .parquet?"),
        ("nowhere/out.csv", "No such file or directory; choose another folder"),
        ("folder.csv", "is a folder; give the name of a file in it"),
    ],
)
def test_an_impossible_output_is_one_sentence_before_anything_runs(sttm, clips, tmp_path, monkeypatch, name, said):
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr("sttm.models.load", lambda name: pytest.fail("the model was loaded"))
    outcome = sttm("predict", clips, "--output", tmp_path / name)
    assert outcome.code == 2 and not outcome.out and said in outcome.err and outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_parquet_without_pyarrow_is_one_sentence(sttm, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("sttm.evaluation.output.find_spec", lambda name: None)
    outcome = sttm("predict", clips, "--output", tmp_path / "out.parquet")
    assert outcome.code == 2 and "pip install pyarrow" in outcome.err and outcome.err.count("\n") == 1


def test_an_error_leaves_no_output(sttm, small_model, clips, tmp_path, monkeypatch):
    def fail(*args: object, **options: object):
        yield {"path": "a", "error": "unreadable"}
        raise SttmError("8 clips at once do not fit into the memory of cuda; use a smaller batch size")

    monkeypatch.setattr("sttm.evaluation.predict.predict_files", fail)
    outcome = sttm("predict", clips, "--model", small_model, "--output", tmp_path / "out.csv")
    assert outcome.code == 2 and "do not fit" in outcome.err and not list(tmp_path.iterdir())


def test_isolate_reads_in_processes_of_their_own(sttm, clips, small_model, monkeypatch):
    from sttm.evaluation import predict as module

    plain = sttm("predict", clips, "--model", small_model, "--json")
    started = []

    def noted(*args):
        started.append(args)
        return isolated(*args)

    isolated = module.isolated  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "isolated", noted)
    apart = sttm("predict", clips, "--model", small_model, "--json", "--isolate")
    assert started and apart.code == plain.code == 1
    for one, other in zip(plain.records, apart.records, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
