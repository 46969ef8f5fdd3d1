"""Testing a model: figures against a naive recount of the files it writes, views, errors, classes, two processes."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sttm import SttmError, cli, load
from sttm.config.settings import DataSettings, SplitSettings
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import read
from sttm.evaluation.evaluate import evaluate, match_classes
from sttm.evaluation.inference import videos_at_once
from sttm.evaluation.metrics import Confusion
from sttm.evaluation.report import Evaluation, draw
from sttm.synth.videos import MOTION_CLASSES, SynthSettings, make

CLIPS = 24


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Made videos of 18 motions, as Something-Something v2 has them, all in the validation split."""
    folder = tmp_path_factory.mktemp("made")
    settings = SynthSettings("motion", CLIPS, seed=3, frames=8, size=32, train=0, validation=1, test=0)
    return make(folder / "motion", settings, workers=1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A very small VideoMAE with random weights that names its classes in an order of its own."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    torch.manual_seed(0)
    names = [name.upper().replace(" ", "_") for name in reversed(MOTION_CLASSES)]
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=32, num_hidden_layers=4,
        num_attention_heads=2, intermediate_size=64, id2label=dict(enumerate(names)),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    model = VideoMAEForVideoClassification(config)
    nn.init.normal_(model.get_parameter("classifier.weight"))
    model.save_pretrained(folder)
    Preprocess.from_folder(folder).to_folder(folder)
    return folder


@pytest.fixture(scope="session")
def ragged(made) -> Path:
    """A csv of 23 videos: one is no video, one is not there, one has its file twice."""
    entries = json.loads((made / "validation.json").read_text())
    rows = [(f"videos/{e['id']}.mp4", e["template"].replace("[", "").replace("]", "")) for e in entries[:21]]
    (made / "broken.mp4").write_text("<html>404</html>")
    rows[4:4] = [("broken.mp4", rows[0][1]), ("absent.mp4", rows[1][1])]
    lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
    (made / "ragged.csv").write_text("\n".join(lines) + "\n")
    return made / "ragged.csv"


@pytest.fixture
def sttm(monkeypatch, capsys) -> Callable[..., SimpleNamespace]:
    """Run a command in this process; an exception that gets past main() fails the test."""

    def run(*args: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["sttm", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        return SimpleNamespace(code=int(exit_.value.code or 0), out=output.out, err=output.err)

    return run


def videos_of(made: Path) -> VideoSet:
    listed = SplitSettings(list=made / "validation.json", root=made / "videos")
    return read_split(DataSettings(validation=listed, labels=made / "labels.json"), "validation")


class Fixed(nn.Module):
    """A model that answers with its logits for the mean colour of each clip."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor], labels: list[str]) -> None:
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(id2label=dict(enumerate(labels)))
        self.calls: list[int] = []

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        self.calls.append(len(pixels))
        return SimpleNamespace(logits=self.answer(pixels))


# --- figures ------------------------------------------------------------------------------------------------


def rows_of(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def recount(rows: list[dict[str, str]]) -> dict[str, float]:
    """All figures from predictions.csv alone, the naive way."""
    counted = [row for row in rows if row["prediction_1"] and row["label"]]
    classes = defaultdict(list)
    for row in counted:
        classes[row["label"]].append(row["label"] == row["prediction_1"])
    among = sum(row["label"] in [row[f"prediction_{rank}"] for rank in range(1, 6)] for row in counted)
    return {
        "clips": len(counted),
        "top1": sum(row["label"] == row["prediction_1"] for row in counted) / len(counted),
        "top5": among / len(counted),
        "mean_class": sum(sum(goods) / len(goods) for goods in classes.values()) / len(classes),
    }


def test_figures_are_a_recount_of_the_predictions(sttm, model_folder, ragged, made, tmp_path):
    args = ["eval", model_folder, "--data", ragged, "--labels", made / "labels.json", "--batch-size", 5]
    outcome = sttm(*args, "--out", tmp_path / "out", "--json")
    assert outcome.code == 1, outcome.err
    summary = json.loads(outcome.out)
    rows = rows_of(tmp_path / "out")
    naive = recount(rows)
    assert naive["clips"] == 21 and len(rows) == 22
    assert {name: pytest.approx(value) for name, value in naive.items()} == {name: summary[name] for name in naive}
    assert 0 < naive["top5"] < 1  # a recount of nothing would prove nothing
    # the table of the classes says the same
    table = rows_of(tmp_path / "out", "per_class.csv")
    assert sum(int(row["clips"]) for row in table) == 21
    assert sum(int(row["correct"]) for row in table) == round(21 * naive["top1"])
    for row in table:
        own = [r["prediction_1"] for r in rows if r["label"] == row["class"] and r["prediction_1"]]
        assert (int(row["clips"]), int(row["correct"])) == (len(own), own.count(row["class"]))
        mistakes = [name for name in own if name != row["class"]]
        assert int(row["times"]) == max(map(mistakes.count, mistakes), default=0)
        assert not mistakes or mistakes.count(row["taken_for"]) == int(row["times"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    # what could not be read is named once, and counted neither way
    assert {Path(failed["path"]).name for failed in summary["errors"]} == {"broken.mp4", "absent.mp4"}
    assert outcome.err.count("broken.mp4") == outcome.err.count("absent.mp4") == 1
    assert "2 of 23 videos could not be tested" in outcome.err and "Traceback" not in outcome.err


def test_predictions_are_what_the_model_says_by_name(model_folder, made):
    videos, preprocess, model = videos_of(made), Preprocess.from_folder(model_folder), load(model_folder)
    found = evaluate(model, videos, preprocess)
    for video, row in zip(videos.videos, found.predictions, strict=True):
        (clip,) = read(video.path, preprocess.sampling)
        with torch.no_grad():
            scores = model(preprocess(clip.frames_TCHW)).logits[0].softmax(-1)
        assert row["path"] == video.path
        assert row["score_1"] == pytest.approx(scores.max().item(), abs=1e-6)
        assert row["prediction_1"] == model.config.id2label[int(scores.argmax())]
        assert row["label"] == videos.classes[video.label or 0].upper().replace(" ", "_")
    assert found.clips == found.top1.total == CLIPS and not found.errors


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_views_are_averaged_for_each_video(made, model_folder, average):
    draw = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn((CLIPS * 6, 3), generator=draw)
    place = iter(range(CLIPS * 6))
    model = Fixed(lambda pixels: torch.stack([logits[next(place)] for _ in pixels]), ["a", "b", "c"])
    videos = VideoSet(tuple(type(v)(v.path, None) for v in videos_of(made).videos), (), (), "list", False)
    found = evaluate(
        model, videos, Preprocess.from_folder(model_folder), views=(2, 3), average=average, batch_size=4, workers=1
    )
    views = logits.view(CLIPS, 6, 3)
    expected = views.softmax(-1).mean(1) if average == "probabilities" else views.mean(1).softmax(-1)
    assert [row["score_1"] for row in found.predictions] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-6)
    assert max(model.calls) <= 4  # many views are no reason to run out of memory
    assert math.isnan(found.top1.share) and found.summary()["top1"] is None and found.clips == CLIPS


@pytest.mark.parametrize(
    ("batch_size", "views", "videos"), [(8, (1, 1), 8), (8, (1, 3), 2), (8, (5, 3), 1), (1, (1, 1), 1)]
)
def test_a_batch_holds_as_many_videos_as_their_views_allow(batch_size, views, videos):
    assert videos_at_once(batch_size, views) == videos


def test_batches_change_nothing(model_folder, made):
    videos, preprocess, model = videos_of(made), Preprocess.from_folder(model_folder), load(model_folder)
    one, other = (evaluate(model, videos, preprocess, batch_size=size, workers=2) for size in (1, 7))
    assert [answer.best for answer in one.answers] == [answer.best for answer in other.answers]
    np.testing.assert_array_equal(one.confusion.counts_KK, other.confusion.counts_KK)


def test_scores_that_are_not_finite_are_an_error_of_that_video(made, model_folder):
    seen = iter(range(CLIPS))

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(pixels), len(MOTION_CLASSES))
        for row in logits:
            row[0] = math.nan if next(seen) == 3 else 1.0
        return logits

    model, videos = Fixed(answer, list(MOTION_CLASSES)), videos_of(made)
    found = evaluate(model, videos, Preprocess.from_folder(model_folder))
    assert found.clips == found.top1.total == CLIPS - 1
    ((path, error),) = found.errors
    assert path == videos.videos[3].path and "not finite" in error
    assert found.predictions[3]["prediction_1"] is None and "not finite" in found.predictions[3]["note"]


# --- classes ------------------------------------------------------------------------------------------------


def set_of(classes: tuple[str, ...], labels: list[int | None]) -> VideoSet:
    from sttm.data.datasets.video_set import Video

    return VideoSet(tuple(Video("x.mp4", label) for label in labels), classes, (), "list", False)


def test_classes_are_matched_by_name_then_by_number():
    labels = ["riding a bike", "air drumming", "Zumba"]
    assert match_classes(set_of(("zumba", "Riding_a_Bike"), [0, 1]), labels) == {0: 2, 1: 0}
    assert match_classes(set_of(("0", "1", "2"), [2, 0]), labels) == {0: 0, 2: 2}
    assert match_classes(set_of(("skating", "Zumba"), [1, None]), labels) == {1: 2}  # no clip, no question


def test_a_class_that_the_model_does_not_know_is_one_sentence():
    with pytest.raises(SttmError, match=r"no class 'skating' nor 1 other of the data among its 2 \(a, b, "):
        match_classes(set_of(("a", "skating", "sailing"), [0, 1, 2]), ["a", "b"])
    with pytest.raises(SttmError, match="no class '2'"):
        match_classes(set_of(("0", "1", "2"), [2]), ["a", "b"])


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def config(made, model_folder, tmp_path) -> Path:
    text = f"""
        data: {{validation: {{list: {made}/validation.json, root: {made}/videos}}, labels: {made}/labels.json}}
        model: {{start: {model_folder}}}
        optimizer: {{steps: 2}}
        evaluation: {{views: 1x3, average: logits}}
        run: {{output: {tmp_path}/run}}
    """
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path / "mine.yaml"


def test_a_config_tests_where_its_run_starts_then_what_it_trained(sttm, config, model_folder, tmp_path):
    before = sttm("eval", config, "--json")
    assert before.code == 0, before.err
    assert "no trained model" in before.err and before.err.count("\n") == 1
    summary = json.loads(before.out)
    assert (summary["split"], summary["views"], summary["average"]) == ("validation", "1x3", "logits")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(model_folder)
    after = sttm("eval", config, "--json", "--views", "2x1", "--compute", "0.7")
    assert after.code == 0 and not after.err
    summary = json.loads(after.out)
    assert summary["model"] == str(tmp_path / "run" / "model")
    assert summary["views"] == "2x1" and 0.5 < summary["compute"] <= 0.7


def test_people_get_a_table(sttm, model_folder, made):
    root = ["--root", made / "videos", "--labels", made / "labels.json"]
    outcome = sttm("eval", model_folder, "--data", made / "validation.json", *root)
    assert outcome.code == 0 and not outcome.err
    assert "top-1" in outcome.out and "95 % interval" in outcome.out and "TURNING_SOMETHING_CLOCKWISE" in outcome.out


def test_a_list_without_labels_gets_predictions_only(sttm, model_folder, made, tmp_path):
    ids = [{"id": str(number)} for number in range(6)]
    (made / "test-only.json").write_text(json.dumps(ids))
    options = ["--root", made / "videos", "--predictions", "parquet"]
    outcome = sttm("eval", model_folder, "--data", made / "test-only.json", *options, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "no labels" in outcome.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.parquet", "summary.json"]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [Path(row["path"]).stem for row in table] == [str(number) for number in range(6)]
    assert all(row["label"] is None and row["prediction_5"] and 0 < row["score_1"] < 1 for row in table)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "say where the videos are"),
        (["--data", "none.csv"], "none.csv"),
        (["--data", "x", "--views", "3"], "views=3"),
        (["--data", "x", "--compute", "2"], "compute=2"),
        (["--data", "x", "--method", "tome"], "--compute"),
        (["--data", "x", "--set", "run.seed=1"], "is a model"),
    ],
)
def test_bad_options_are_one_sentence(sttm, model_folder, args, said):
    outcome = sttm("eval", model_folder, *args)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1 and not outcome.out


def test_bad_configs_are_one_sentence(sttm, config, tmp_path):
    for args, said in (
        (["--split", "mine"], "choose train, validation, test"),
        (["--split", "train"], "data.train"),
        (["--layout", "csv"], "belong to --data"),
        (["--set", "model.start=null", "--set", "model.family=videomae"], "run sttm train"),
    ):
        outcome = sttm("eval", config, *args)
        assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome.err
    (tmp_path / "file").write_text("")
    outcome = sttm("eval", config, "--out", tmp_path / "file" / "below")
    assert outcome.code == 2 and "cannot write results" in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize("classes", [1, 6, 400])
def test_confusion_is_drawn_for_few_and_for_many(tmp_path, classes):
    counts = np.eye(classes + 1, dtype=np.int64)
    counts[0, -1], counts[-1, -1] = 2, 0  # one class that only occurs as an answer
    labels = tuple(f"$class_{number}" * 4 for number in range(classes + 1))
    draw(Evaluation(labels, Confusion(counts), (), (), 1.0), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


# --- several processes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_count_every_video_once(sttm, model_folder, ragged, made, tmp_path):
    args = ["eval", model_folder, "--data", ragged, "--labels", made / "labels.json", "--batch-size", "2"]
    alone = sttm(*args, "--out", tmp_path / "one", "--json")
    script = tmp_path / "main.py"
    script.write_text("from sttm.cli import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*torchrun, *map(str, args), "--out", str(tmp_path / "two"), "--json"],
        capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert "could not be tested" in done.stderr and done.stderr.count("2 of 23 videos") == 1, done.stderr[-3000:]
    timed = {"seconds", "clips_per_s"}
    one, two = (
        {name: value for name, value in json.loads(text).items() if name not in timed}
        for text in (alone.out, done.stdout)
    )
    assert one == two
    apart, together = (rows_of(tmp_path / name) for name in ("one", "two"))
    assert [row["path"] for row in apart] == [row["path"] for row in together] and len(apart) == 22
    assert [row["prediction_1"] for row in apart] == [row["prediction_1"] for row in together]


def test_a_process_with_fewer_videos_runs_the_model_as_often(made, model_folder, monkeypatch):
    """World 2 without a second process: what each would do, and that together they are the whole."""
    from sttm.evaluation import evaluate as module

    monkeypatch.setattr(module, "_gathered", lambda answers: answers)
    videos = videos_of(made)
    videos = VideoSet(videos.videos[:5], videos.classes, (), videos.layout, False)
    calls: list[list[int]] = []
    places: list[int] = []
    for rank in range(2):
        model = Fixed(lambda pixels: torch.zeros(len(pixels), len(MOTION_CLASSES)), list(MOTION_CLASSES))
        parts: Any = evaluate(
            model, videos, Preprocess.from_folder(model_folder), batch_size=1, rank=rank, world=2, views=(2, 1)
        )
        calls.append(model.calls)
        places += [answer.place for answer in parts.answers]
    assert len(calls[0]) == len(calls[1]) == 6  # three rounds of two views each, the last of rank 1 is black
    assert sorted(places) == [0, 1, 2, 3, 4]
