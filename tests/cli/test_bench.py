"""`sttm bench`."""

import json

import pytest

from sttm.models import DEFAULT


def test_bench_hands_its_options_on(sttm, monkeypatch):
    def run(models, methods, computes, **options):
        options.pop("advance")(1, 2)
        assert (models, methods, computes) == (["m", "n"], ["sttm", "tome"], [1.0, 0.5])
        assert options == {
            "batches": [2, 8],
            "dtypes": ["fp32", "bf16"],
            "engines": ["eager", "onnx"],
            "rounds": 3,
            "device": "cpu",
        }
        row = {"model": "m", "macs": 123456, "latency_ms": {"p50": 1.25, "p90": 2.0}, "peak_memory_mb": None}
        return {"machine": "two cores", "rows": [row | {"batch": 2}, row | {"batch": 8}]}

    monkeypatch.setattr("sttm.benchmark.speed.run", run)
    args = "bench --model m --model n --methods sttm,tome --compute 1,0.5".split()
    args += "--batch 2,8 --dtype fp32,bf16 --engine eager,onnx --rounds 3 --device cpu".split()
    assert json.loads(sttm(*args, "--json").out)["machine"] == "two cores"
    args[args.index("--methods")] = "--method"
    title, table = sttm(*args).out.split("\n", 1)
    assert title.strip() == "Bench on two cores, m"  # what all rows have in common is said once
    assert all(text in table for text in ("latency ms", "123,456", "1.25 / 2", "batch")) and "model" not in table


def test_bench_hands_the_options_of_train_on(sttm, monkeypatch):
    def run(models, methods, computes, **options):
        assert (models, methods, computes) == ([DEFAULT], ["sttm"], [1.0, 0.5]) and callable(options.pop("advance"))
        assert options == {"batches": [4], "dtypes": ["bf16"], "rounds": 2, "device": "cpu"}
        return {"machine": "two cores", "rows": [{"method": "plain", "step_ms": {"p50": 1.25, "p90": 2.0}}]}

    monkeypatch.setattr("sttm.benchmark.train.run", run)
    args = "bench --train --compute 1,0.5 --batch 4 --dtype bf16 --rounds 2 --device cpu".split()
    out = sttm(*args).out
    assert "Training on two cores" in out and "1.25 / 2" in out


def test_bench_hands_the_options_of_pipeline_on(sttm, monkeypatch, tmp_path):
    def run(names, **options):
        assert names == [DEFAULT] and callable(options.pop("advance"))
        assert options == {"data": tmp_path, "batch_size": 8, "rounds": 2, "device": "cpu"}
        return {"machine": "two cores", "rows": [{"model": "m", "ratio": {"p10": 0.8, "p50": 0.9, "p90": 1.0}}]}

    monkeypatch.setattr("sttm.benchmark.pipeline.run", run)
    args = ["bench", "--pipeline", "--data", tmp_path, "--rounds", "2", "--device", "cpu"]
    assert json.loads(sttm(*args, "--json").out)["machine"] == "two cores"
    assert "0.8 / 0.9 / 1" in sttm(*args).out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("--data list.csv", "--pipeline"),
        ("--batch 1,two", "--batch=two is not a whole number"),
        ("--pipeline --batch 1,2", "one batch size at a time"),
        ("--pipeline --plot a.png", "not --pipeline; leave one of the two out"),
        ("--train --plot a.png", "not --train; leave one of the two out"),
        ("--train --pipeline", "leave one of the two out"),
        ("--train --engine onnx", "trained on eager"),
        ("--plot a.pdf", "ends in .png"),
        ("--plot nowhere/a.png", "there is no folder nowhere"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(sttm, monkeypatch, args, sentence):
    monkeypatch.setattr("sttm.benchmark.speed.run", lambda *_, **__: pytest.fail("timed something"))
    outcome = sttm("bench", *args.split())
    assert outcome.code == 2 and sentence in outcome.err and outcome.err.count("\n") == 1 and not outcome.out
