"""`sttm eval`: figures against a naive recount of the files it writes, configs, options, two processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest


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


def test_figures_are_a_recount_of_the_predictions(sttm, motion_model, motion_list, motion_videos, tmp_path):
    args = ["eval", motion_model, "--data", motion_list, "--labels", motion_videos / "labels.json", "--batch-size", 5]
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
    assert "2 of 23 videos could not be evaluated" in outcome.err and "Traceback" not in outcome.err


@pytest.fixture
def config(motion_videos, motion_model, tmp_path) -> Path:
    text = f"""
        data:
          validation: {{list: {motion_videos}/validation.json, root: {motion_videos}/videos}}
          labels: {motion_videos}/labels.json
        model: {{start: {motion_model}}}
        optimizer: {{steps: 2}}
        evaluation: {{views: 1x3, average: logits}}
        run: {{output: {tmp_path}/run}}
    """
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path / "mine.yaml"


def test_a_config_evaluates_where_its_run_starts_then_what_it_trained(sttm, config, motion_model, tmp_path):
    before = sttm("eval", config, "--json")
    assert before.code == 0, before.err
    assert "no trained model" in before.err and before.err.count("\n") == 1
    summary = json.loads(before.out)
    assert (summary["split"], summary["views"], summary["average"]) == ("validation", "1x3", "logits")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(motion_model)
    after = sttm("eval", config, "--json", "--views", "2x1", "--compute", "0.7")
    assert after.code == 0 and not after.err
    summary = json.loads(after.out)
    assert summary["model"] == str(tmp_path / "run" / "model")
    assert summary["views"] == "2x1" and 0.5 < summary["compute"] <= 0.7


def test_people_get_a_table(sttm, motion_model, motion_videos):
    root = ["--root", motion_videos / "videos", "--labels", motion_videos / "labels.json"]
    outcome = sttm("eval", motion_model, "--data", motion_videos / "validation.json", *root)
    assert outcome.code == 0 and not outcome.err
    assert "top-1" in outcome.out and "95 % interval" in outcome.out and "TURNING_SOMETHING_CLOCKWISE" in outcome.out


def test_a_list_without_labels_gets_predictions_only(sttm, motion_model, motion_videos, tmp_path):
    ids = [{"id": str(number)} for number in range(6)]
    listed = motion_videos / "test-only.json"
    listed.write_text(json.dumps(ids))
    options = ["--root", motion_videos / "videos", "--predictions", "parquet"]
    outcome = sttm("eval", motion_model, "--data", listed, *options, "--out", tmp_path / "out")
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
def test_bad_options_are_one_sentence(sttm, motion_model, args, said):
    outcome = sttm("eval", motion_model, *args)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1 and not outcome.out


def test_bad_configs_are_one_sentence(sttm, config, tmp_path):
    for args, said in (
        (["--split", "mine"], "choose one of train, validation, test"),
        (["--split", "train"], "data.train"),
        (["--format", "csv"], "belong to --data"),
        (["--set", "model.start=null", "--set", "model.family=videomae"], "run sttm train"),
    ):
        outcome = sttm("eval", config, *args)
        assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome.err
    (tmp_path / "file").write_text("")
    outcome = sttm("eval", config, "--out", tmp_path / "file" / "below")
    assert outcome.code == 2 and "cannot write to --out=" in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.slow
def test_two_processes_count_every_video_once(sttm, motion_model, motion_list, motion_videos, tmp_path):
    args = ["eval", motion_model, "--data", motion_list, "--labels", motion_videos / "labels.json", "--batch-size", "2"]
    alone = sttm(*args, "--out", tmp_path / "one", "--json")
    script = tmp_path / "main.py"
    script.write_text("from sttm.cli import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*torchrun, *map(str, args), "--out", str(tmp_path / "two"), "--json"],
        capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert "could not be evaluated" in done.stderr and done.stderr.count("2 of 23 videos") == 1, done.stderr[-3000:]
    timed = {"seconds", "clips_per_s"}
    one, two = (
        {name: value for name, value in json.loads(text).items() if name not in timed}
        for text in (alone.out, done.stdout)
    )
    assert one == two
    apart, together = (rows_of(tmp_path / name) for name in ("one", "two"))
    assert [row["path"] for row in apart] == [row["path"] for row in together] and len(apart) == 22
    assert [row["prediction_1"] for row in apart] == [row["prediction_1"] for row in together]


def test_a_report_compares_with_and_without_merging(sttm, motion_model, motion_list, motion_videos, tmp_path, browser):
    args = ["eval", motion_model, "--data", motion_list, "--labels", motion_videos / "labels.json", "--json"]
    merged = sttm(*args, "--compute", "0.6", "--report", tmp_path / "new" / "r.html")
    plain = sttm(*args)
    html = (tmp_path / "new" / "r.html").read_text(encoding="utf-8")
    shown = []
    for summary in (json.loads(plain.out), json.loads(merged.out)):
        low, high = (100 * end for end in summary["top1_interval"])
        shown.append(f"{100 * summary['top1']:.1f} % ({low:.1f} to {high:.1f})")
        assert f">{shown[-1]}<" in html
    assert "Most hurt by merging" in html and "Most helped by merging" in html and html.count("<article>") == 6
    assert html.count("<svg") == 2 and "2 videos could not be read" in html and "http" not in html
    page = browser.new_page()
    page.goto((tmp_path / "new" / "r.html").as_uri())
    for width in (320, 1100):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_report_of_a_plain_model_or_without_labels_has_what_there_is(sttm, motion_model, motion_videos, tmp_path):
    options = ["--root", motion_videos / "videos", "--report", tmp_path / "r.html"]
    listed = motion_videos / "report-only.json"
    listed.write_text(json.dumps([{"id": "0"}, {"id": "1"}]))
    assert sttm("eval", motion_model, "--data", listed, *options).code == 0
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no labels" in html and "<svg" not in html and "<article" not in html
    outcome = sttm("eval", motion_model, "--data", listed, "--report", tmp_path / "r.pdf")
    assert outcome.code == 2 and "give the name of a .html file" in outcome.err and outcome.err.count("\n") == 1


def test_isolate_reads_through_what_it_is_given(sttm, motion_model, motion_list, monkeypatch):
    from contextlib import contextmanager
    from dataclasses import replace

    from sttm.data.loader import read_crops
    from sttm.evaluation import evaluate as module

    @contextmanager
    def failing(workers):
        def read(index, *job):
            sample = read_crops(index, *job)
            return replace(sample, pixels_VTCHW=None, error="it crashes the decoder") if index == 3 else sample

        yield read

    monkeypatch.setattr(module, "isolated", failing)
    args = ["eval", motion_model, "--data", motion_list, "--json"]
    plain, apart = (json.loads(sttm(*args, *more).out) for more in ([], ["--isolate"]))
    new = [error["error"] for error in apart["errors"] if error not in plain["errors"]]
    assert new == ["it crashes the decoder"] and apart["clips"] == plain["clips"] - 1
