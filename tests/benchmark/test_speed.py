"""What a row of `sttm bench` says, and what is refused before anything is timed."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import sttm
from sttm.benchmark import shapes
from sttm.benchmark import speed as bench
from sttm.benchmark.timing import in_turn
from sttm.engines.engine import Engine
from sttm.errors import SttmError

ROW = {"model", "method", "compute", "macs", "batch", "dtype", "mode"}
ROW |= {"latency_ms", "clips_per_s", "speedup", "over_eager", "ideal_speedup", "realised", "peak_memory_mb"}
ROW |= {"merger_share"}


def tiny() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, num_labels=5
    )
    config = VideoMAEConfig(**sizes, image_size=32, patch_size=8, num_frames=8)
    return VideoMAEForVideoClassification(config).eval()


@pytest.fixture
def plain(tmp_path) -> str:
    return str(sttm.save(tiny(), tmp_path / "plain"))


@pytest.fixture
def merged(tmp_path) -> str:
    model = tiny()
    sttm.apply(model, compute=0.5, learned=True)
    return str(sttm.save(model, tmp_path / "merged"))


def test_rows_say_what_was_run(plain, capfd):
    result = bench.run([plain], ["sttm"], [1, 0.8, 0.5], batches=[2], dtypes=["fp32", "bf16"], rounds=1)
    assert set(result) == {"machine", "rows"} and all(set(row) == ROW for row in result["rows"])
    assert capfd.readouterr().out == ""
    model = tiny()
    whole = sttm.macs(model)
    for dtype in ("fp32", "bf16"):
        rows = [row for row in result["rows"] if row["dtype"] == dtype]
        assert [row["method"] for row in rows] == ["plain", "sttm", "sttm"]
        for row, target in zip(rows, (1, 0.8, 0.5), strict=True):
            assert target - 0.01 <= row["compute"] <= target and row["macs"] == round(row["compute"] * whole)
            assert row["ideal_speedup"] == pytest.approx(1 / row["compute"], abs=1e-3)
            assert (row["model"], row["batch"], row["mode"]) == (plain, 2, "eager")
        assert rows[0]["speedup"] == rows[0]["realised"] == 1 and rows[0]["merger_share"] == 0
        for row in rows[1:]:
            assert row["realised"] == pytest.approx(row["speedup"] / row["ideal_speedup"], abs=2e-3)
            assert 0 < row["merger_share"] < 1


def test_figures_are_medians_over_rounds_and_of_ratios(plain, monkeypatch):
    rounds = iter([[9.0, 9.0], [4.0, 1.0], [3.0, 2.0], [6.0, 4.0]])  # the first warms up

    def scripted(runs, turn, device):
        return next(rounds), [run() for run in runs]

    monkeypatch.setattr(bench, "in_turn", scripted)
    first, second = bench.run([plain], ["sttm"], [0.5], batches=[2], rounds=3)["rows"]
    assert first["latency_ms"] == {"p50": 4000, "p90": 5600} and first["clips_per_s"] == 0.5
    assert second["latency_ms"] == {"p50": 2000, "p90": 3600} and second["clips_per_s"] == 1
    assert second["speedup"] == 1.5  # the median of 4, 1.5, 1.5, and not 4 / 2


def test_engines_are_timed_in_one_turn(plain, monkeypatch):
    def make(name, model, dtype):
        return Engine(name, dtype, model, lambda pixels: torch.zeros(len(pixels), 5))

    def scripted(runs, turn, device):
        assert len(runs) == 6
        return [8.0, 4, 4, 2, 1, 0.5], [run() for run in runs]  # plain and merged, on each of three

    monkeypatch.setattr(bench, "make_engine", make)
    monkeypatch.setattr(bench, "in_turn", scripted)
    dtypes, engines = ["fp32", "int8"], ["eager", "openvino"]
    rows = bench.run([plain], ["sttm"], [0.5], rounds=1, dtypes=dtypes, engines=engines)["rows"]
    modes = [(row["mode"], row["dtype"], row["method"]) for row in rows]
    assert modes[::2] == [("eager", "fp32", "plain"), ("openvino", "fp32", "plain"), ("openvino", "int8", "plain")]
    assert [row["speedup"] for row in rows] == [1, 2, 1, 2, 1, 2]
    assert [row["over_eager"] for row in rows] == [1, 2, 2, 4, 8, 16]
    for figure in ("peak_memory_mb", "merger_share"):
        assert [row[figure] is None for row in rows] == [False, False, True, True, True, True]


def test_each_batch_has_its_turns_and_peers_share_them(plain, monkeypatch):
    turns = []

    def counted(runs, turn, device):
        turns.append(len(runs))
        return in_turn(runs, turn, device)

    steps = []
    monkeypatch.setattr(bench, "in_turn", counted)
    methods = ["sttm", "tome", "random"]
    rows = bench.run([plain], methods, [0.5], batches=[1, 3], rounds=3, advance=lambda *of: steps.append(of))["rows"]
    assert turns == [4] * 4 * 2  # the plain model and three methods; a warm-up and three rounds; two batches
    assert [(row["batch"], row["method"]) for row in rows] == [(b, m) for b in (1, 3) for m in ("plain", *methods)]
    assert set(steps) == {(1, len(steps))}


def test_variants_share_weights_and_keep_to_themselves():
    model, clips = tiny(), torch.randn(1, 8, 3, 32, 32)
    with torch.no_grad():
        before = model(clips).logits
        one, two = bench.make_variants(model, ["sttm"], [1, 0.5])
        merged, plain = two.model(clips).logits, one.model(clips).logits
    assert torch.equal(plain, before) and not torch.allclose(merged, before, atol=1e-6)
    weights = [[p.data_ptr() for p in variant.parameters()] for variant in (model, one.model, two.model)]
    assert weights[0] == weights[1] == weights[2]


def test_saved_merged_is_timed_as_it_is_against_its_plain_self(merged):
    rows = bench.run([merged], ["sttm"], [1], rounds=1)["rows"]
    assert [row["method"] for row in rows] == ["plain", "sttm (as saved)"]
    assert rows[0]["macs"] == sttm.macs(tiny()) and rows[1]["macs"] == sttm.macs(sttm.load(merged))


STANDARD = {  # millions of parameters, billions of multiply-adds: as published, the classes aside
    "videomae-s": (22.0, 56.88),
    "videomae-b": (86.5, 180.34),
    "videomae-l": (303.9, 597.0),
    "vivit-b": (88.9, 451.5),
    "timesformer-b": (121.6, 195.8),
    "vjepa2-l": (375.5, 935.2),
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_standard_shapes_are_what_their_names_say(name):
    with torch.device("meta"):
        model = shapes.SHAPES[name]()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert (millions, sttm.macs(model) / 1e9) == pytest.approx(STANDARD[name], rel=0.005)


def test_random_weights_are_called_so(monkeypatch):
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": tiny})
    (row,) = bench.run(["tiny"], [], [1], rounds=1)["rows"]
    assert row["model"] == "tiny (random weights)"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"models": []}, "nothing to time"),
        ({"models": ["videomae-s", "./nowhere"]}, "videomae-b"),
        ({"methods": ["magic"]}, "unknown method 'magic'"),
        ({"computes": [0.001]}, "0.001"),
        ({"computes": [0]}, "compute=0"),
        ({"dtypes": ["fp8"]}, "unknown dtype 'fp8'"),
        ({"dtypes": ["fp32", "int8"]}, "engine eager has fp32 and bf16, not int8"),
        ({"engines": ["eager", "turbo"]}, "unknown engine 'turbo'"),
        ({"batches": []}, "nothing to time"),
        ({"engines": []}, "at least one engine"),
        ({"batches": [2, 0]}, "batch=0"),
        ({"rounds": 0}, "rounds=0"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(plain, monkeypatch, changed, sentence):
    monkeypatch.setattr(bench, "_measure", lambda *_: pytest.fail("timed something"))
    options = {"models": [plain], "methods": ["sttm"], "computes": [0.5], "rounds": 1} | changed
    with pytest.raises(SttmError, match=sentence):
        bench.run(options.pop("models"), options.pop("methods"), options.pop("computes"), **options)


def test_a_full_memory_is_one_sentence(plain, monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(bench, "_measure", full)
    with pytest.raises(SttmError, match="smaller batch"):
        bench.run([plain], ["sttm"], [0.5], batches=[512], rounds=1)
