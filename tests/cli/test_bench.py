"""`sttm bench`."""

import json

from sttm.models import DEFAULT


def test_bench_hands_its_options_on(sttm, monkeypatch):
    def run(models, methods, computes, **options):
        options.pop("advance")(1, 2)
        assert (models, methods, computes) == (["m", "n"], ["sttm", "tome"], [1.0, 0.5])
        assert options == {
            "batch": 2,
            "dtypes": ["fp32", "bf16"],
            "engines": ["eager", "onnx"],
            "rounds": 3,
            "device": "cpu",
        }
        row = {"model": "m", "macs": 123456, "latency_ms": {"p50": 1.25, "p90": 2.0}, "peak_memory_mb": None}
        return {"machine": "two cores", "rows": [row]}

    monkeypatch.setattr("sttm.benchmark.speed.run", run)
    args = "bench --model m --model n --methods sttm,tome --compute 1,0.5".split()
    args += "--batch 2 --dtype fp32,bf16 --engine eager,onnx --rounds 3 --device cpu".split()
    assert json.loads(sttm(*args, "--json").out)["machine"] == "two cores"
    table = sttm(*args).out
    assert all(text in table for text in ("two cores", "latency ms", "123,456", "1.25 / 2"))


def test_bench_hands_the_options_of_pipeline_on(sttm, monkeypatch, tmp_path):
    def run(names, **options):
        assert names == [DEFAULT] and callable(options.pop("advance"))
        assert options == {"data": tmp_path, "batch_size": 8, "rounds": 2, "device": "cpu"}
        return {"machine": "two cores", "rows": [{"model": "m", "ratio": {"p10": 0.8, "p50": 0.9, "p90": 1.0}}]}

    monkeypatch.setattr("sttm.benchmark.pipeline.run", run)
    args = ["bench", "--pipeline", "--data", tmp_path, "--rounds", "2", "--device", "cpu"]
    assert json.loads(sttm(*args, "--json").out)["machine"] == "two cores"
    assert "0.8 / 0.9 / 1" in sttm(*args).out


def test_data_without_pipeline_is_one_sentence(sttm):
    outcome = sttm("bench", "--data", "list.csv")
    assert outcome.code == 2 and "--pipeline" in outcome.err and outcome.err.count("\n") == 1
