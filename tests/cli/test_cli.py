"""The command line as people use it: whole commands on real files, good and bad."""

import csv
import json
import math
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from torch import nn

from sttm import SttmError, apply, cli, doctor, load, save
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import read
from sttm.data.video.video import Video
from sttm.evaluation import predict as engine
from tests.helpers import ROOT

COMMANDS = ("predict", "models", "doctor", "synth", "bench", "demo", "train", "eval", "data check")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def sttm(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run a command in this process; an exception that gets past main() fails the test."""

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sttm", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), output.out, output.err)

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A very small VideoMAE with random weights, its own labels and its own way with pixels."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=32, num_hidden_layers=4,
        num_attention_heads=2, intermediate_size=64, id2label=dict(enumerate(["ant", "bee", "cat"])),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    model = VideoMAEForVideoClassification(config)
    nn.init.normal_(model.get_parameter("classifier.weight"))  # as it comes, a head of zeros finds all clips the same
    model.save_pretrained(folder)
    Preprocess.from_folder(folder).to_folder(folder)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of three videos of noise, one of them broken, and two files that are no video."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    for seed, name in enumerate(["a.mp4", "deep/c.mkv"]):
        noise = np.random.default_rng(seed).integers(0, 256, (10, 48, 64, 3), np.uint8)
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for image in noise:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode())
    (folder / "b.mp4").write_text("<html>404</html>")
    (folder / "labels.csv").write_text("a.mp4,ant")
    (folder / "notes.md").write_text("# no video")
    return folder


# --- help and usage -----------------------------------------------------------------------------------------


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv = ['sttm', '--help']\n"
        "from sttm.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert all(command.split()[0] in run.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(sttm, command):
    help_ = sttm(*command.split(), "--help")
    assert help_.code == 0
    assert f"Example:  sttm {command}" in help_.out


def test_version(sttm):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sttm("--version").out.strip() == project["version"]


@pytest.mark.parametrize(
    "args", [[], ["nonsense"], ["predict"], ["predict", "a.mp4", "--top-k", "0"], ["predict", "--x"]]
)
def test_wrong_usage_is_two(sttm, args):
    outcome = sttm(*args)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("compute", ["0", "-1", "1.5", "nan", "inf", "fast", ""])
@pytest.mark.parametrize("command", [["predict", "a.mp4"], ["bench"]])
def test_an_impossible_compute_is_one_sentence(sttm, command, compute):
    outcome = sttm(*command, "--compute", compute)
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: compute=") and outcome.err.count("\n") == 1
    assert not outcome.out


@pytest.mark.parametrize("args", [["--views", "3"], ["--views", "0x1"], ["--views", "2x2"], ["--method", "sttm"]])
def test_contradictions_are_one_sentence(sttm, args):
    outcome = sttm("predict", "a.mp4", *args)
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1


@pytest.mark.parametrize("model", ["no-such-model", "."])
def test_an_unknown_model_is_one_sentence(sttm, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    outcome = sttm("predict", "a.mp4", "--model", model)
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1
    assert not outcome.out


def test_a_folder_that_may_not_be_made_is_one_sentence(sttm, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = sttm("synth", tmp_path / "file" / "below", "--clips", "20")
    assert outcome.code == 2
    assert outcome.err.startswith("sttm: ") and outcome.err.count("\n") == 1


def test_a_broken_installation_points_to_the_doctor(sttm, monkeypatch):
    monkeypatch.setitem(sys.modules, "sttm.synth.videos", None)
    outcome = sttm("synth", "videos")
    assert outcome.code == 2
    assert "sttm doctor" in outcome.err and outcome.err.count("\n") == 1


# --- predict ------------------------------------------------------------------------------------------------


def test_predict_gives_every_video_a_line_and_goes_on_after_a_broken_one(sttm, model_folder, clips):
    outcome = sttm("predict", clips, "--model", model_folder, "--json", "--top-k", "2")
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


def test_predict_says_what_the_model_says(sttm, model_folder, clips):
    from transformers import VideoMAEForVideoClassification

    preprocess = Preprocess.from_folder(model_folder)
    (clip,) = read(clips / "a.mp4", preprocess.sampling)
    model = VideoMAEForVideoClassification.from_pretrained(model_folder).eval()
    with torch.no_grad():
        expected = model(preprocess(clip.frames_TCHW)).logits[0].softmax(-1)
    (record,) = sttm("predict", clips / "a.mp4", "--model", model_folder, "--json", "--top-k", "99").records
    scores = {guess["label"]: guess["score"] for guess in record["predictions"]}
    assert [scores[label] for label in ("ant", "bee", "cat")] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_predict_merges_when_asked(sttm, model_folder, clips, dtype):
    outcome = sttm("predict", clips / "a.mp4", "--model", model_folder, "--compute", "0.7", "--dtype", dtype, "--json")
    assert outcome.code == 0, outcome.err
    assert 0.5 < outcome.records[0]["compute"] <= 0.7


def test_predict_keeps_or_replaces_the_mergers_of_a_merged_model(sttm, model_folder, clips, tmp_path):
    model = load(model_folder)
    own = apply(model, compute=0.7).compute
    save(model, tmp_path)
    Preprocess.from_folder(model_folder).to_folder(tmp_path)
    for options, least, most in (
        ([], own, own),
        (["--compute", "0.7"], own, own),
        (["--compute", "0.8"], 0.7, 0.8),
    ):
        outcome = sttm("predict", clips / "a.mp4", "--model", tmp_path, "--json", *options)
        assert outcome.code == 0, outcome.err
        assert least <= outcome.records[0]["compute"] <= most
        assert ("make way" in outcome.err) == (options == ["--compute", "0.8"])


def test_predict_prints_labels_for_people(sttm, model_folder, clips):
    outcome = sttm("predict", clips / "a.mp4", clips / "b.mp4", "--model", model_folder)
    assert outcome.code == 1
    assert outcome.out.splitlines()[0] == str(clips / "a.mp4")
    assert "%  ant" in outcome.out and "b.mp4" not in outcome.out
    assert "b.mp4" in outcome.err


def test_neither_batches_nor_company_change_a_prediction(sttm, model_folder, clips):
    def scores(*args: object) -> list[float]:
        records = sttm("predict", *args, "--model", model_folder, "--json").records
        return [guess["score"] for record in records if "error" not in record for guess in record["predictions"]]

    together = scores(clips, "--batch-size", 8)
    assert scores(clips, "--batch-size", 1) == pytest.approx(together, abs=1e-6)
    assert scores(clips / "a.mp4") + scores(clips / "deep") == pytest.approx(together, abs=1e-6)


def test_inputs_without_a_video_are_named(clips, monkeypatch, tmp_path):
    monkeypatch.chdir(clips)
    (tmp_path / "empty").mkdir()
    inputs = [str(tmp_path / "empty"), "none-*.mp4", "absent.mp4", "notes.md", "*.mp4", "d*", "x" * 5000]
    found = engine.find_videos(inputs)
    assert [source.path for source in found[2:7]] == [
        "absent.mp4",
        "notes.md",
        "a.mp4",
        "b.mp4",
        "deep/c.mkv",
    ]
    assert [bool(source.error) for source in found] == [True, True, False, False, False, False, False, True]
    assert "no video" in (found[0].error or "") and "no file" in (found[1].error or "")


def test_a_name_with_glob_signs_is_a_file_first(tmp_path):
    odd = tmp_path / "clip[1].mp4"
    odd.touch()
    assert engine.find_videos([str(odd)]) == [Video(str(odd))]


def test_views_average_the_scores(model_folder, clips):
    from transformers import VideoMAEForVideoClassification

    model = VideoMAEForVideoClassification.from_pretrained(model_folder).eval()
    preprocess = Preprocess.from_folder(model_folder)
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, __, output: seen.append(output.logits.softmax(-1)))
    (record,) = engine.predict([Video(str(clips / "a.mp4"))], model, preprocess, views=(2, 3), top_k=1)
    assert seen[0].shape == (6, 3)
    assert record["predictions"][0]["score"] == pytest.approx(seen[0].mean(0).max().item(), abs=1e-6)


@dataclass(frozen=True)
class Blind:
    """A preprocessor that makes one number of a clip."""

    sampling: object
    crop: None = None

    def __call__(self, frames_TCHW: torch.Tensor, crops: int = 1) -> torch.Tensor:
        return frames_TCHW.float().mean().reshape(1, 1)


class Fixed(nn.Module):
    """A model that answers what it is told."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(id2label={0: "no", 1: "yes"})

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.answer(pixels))


def classify(sources: list[str], answer: Callable[[torch.Tensor], torch.Tensor], model_folder: Path) -> list[dict]:
    blind = Blind(Preprocess.from_folder(model_folder).sampling)
    return list(engine.predict(map(Video, sources), Fixed(answer), blind))  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_an_error_of_that_clip(model_folder, clips):
    files = [str(clips / "a.mp4"), str(clips / "deep" / "c.mkv")]
    one_bad = torch.tensor([[math.nan, 0.0], [0.0, 1.0]])
    first, second = classify(files, lambda pixels: one_bad, model_folder)
    assert "not finite" in first["error"]
    assert second["predictions"][0]["label"] == "yes"


def test_a_model_that_refuses_its_clips_is_the_users_to_mend(model_folder, clips):
    def refuse(pixels: torch.Tensor) -> torch.Tensor:
        raise ValueError("Input image size (1*1) doesn't match model (2*2).")

    with pytest.raises(SttmError, match=r"does not take the clips.*doesn't match model"):
        classify([str(clips / "a.mp4")], refuse, model_folder)


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(model_folder, clips):
    files = [str(clips / "a.mp4")] * 50
    command = [sys.executable, "-c", "from sttm.cli import main; main()", "predict", *files, "--json"]
    command += ["--model", str(model_folder), "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stderr is not None
        assert "predictions" in run.stdout.readline()
        run.stdout.close()
        errors = run.stderr.read()
    assert "Traceback" not in errors and "Exception" not in errors
    assert run.returncode != 0


@pytest.mark.slow
def test_predict_over_all_the_shared_clips(sttm, model_folder, shared_data):
    folders = [shared_data / "clips", shared_data / "clips-made"]
    outcome = sttm("predict", *folders, "--model", model_folder, "--json")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    by_path = {Path(record["path"]): record for record in outcome.records}
    videos = {path for folder in folders for path in folder.iterdir() if path.suffix not in {".csv", ".md"}}
    assert set(by_path) == videos
    for folder in folders:
        for row in csv.DictReader((folder / "probe.csv").read_text().splitlines()):
            record = by_path.get(folder / row["path"], {})
            assert ("error" in record) == (not int(row["frames"] or 0)), (row["path"], record)
            assert record.get("error") or record["frames_decoded"] == min(8, int(row["frames"])), record


# --- models, doctor, synth, bench, demo ---------------------------------------------------------------------


def test_models_lists_bundled_ones_and_families(sttm):
    rows = json.loads(sttm("models", "--json").out)
    assert {row["kind"] for row in rows} == {"bundled", "hub id"}
    assert "MCG-NJU/videomae-base" in sttm("models").out


def test_doctor_finds_this_environment_healthy(sttm):
    outcome = sttm("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert outcome.code == 0, outcome.out
    assert all(findings[name]["status"] == "ok" for name in ("python", "torch", "transformers", "video", "model"))


def test_doctor_recognises_a_torchvision_of_another_torch(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    finding = doctor._try("torchvision", doctor._torchvision, needed=False, mend="uninstall it")
    assert finding.status == "broken" and "another torch" in finding.detail and finding.mend == "uninstall it"


def test_doctor_is_not_stopped_by_what_is_broken(sttm, monkeypatch):
    def broken() -> str:
        raise ImportError("libtorch.so: cannot open\nsecond line")

    monkeypatch.setattr(doctor, "_torch", broken)
    monkeypatch.setattr(doctor, "_model", lambda: "fine")
    outcome = sttm("doctor", "--json")
    assert outcome.code == 1
    torch_finding = next(finding for finding in json.loads(outcome.out) if finding["name"] == "torch")
    assert torch_finding["detail"] == "libtorch.so: cannot open" and "pip install" in torch_finding["mend"]


def test_synth_makes_videos_that_decode(sttm, tmp_path):
    outcome = sttm("synth", tmp_path / "made", "--clips", 20, "--size", 32, "--frames", 8, "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "made").rglob("*.mp4"))) == 20


def test_bench_hands_its_options_on(sttm, monkeypatch):
    def run(models, methods, computes, **options):
        assert (models, methods, computes) == (["m", "n"], ["sttm", "tome"], [1.0, 0.5])
        assert options == {"batch": 2, "dtypes": ["fp32", "bf16"], "rounds": 3, "device": "cpu"}
        row = {"model": "m", "macs": 123456, "latency_ms": {"p50": 1.25, "p90": 2.0}, "peak_memory_mb": None}
        return {"machine": "two cores", "rows": [row]}

    monkeypatch.setattr("sttm.benchmark.speed.run", run)
    args = "bench --model m --model n --methods sttm,tome --compute 1,0.5".split()
    args += "--batch 2 --dtype fp32,bf16 --rounds 3 --device cpu".split()
    assert json.loads(sttm(*args, "--json").out)["machine"] == "two cores"
    table = sttm(*args).out
    assert all(text in table for text in ("two cores", "latency ms", "123,456", "1.25 / 2"))


def test_demo_hands_its_options_on(sttm, monkeypatch, tmp_path):
    def run(folder, *, clips, seed):
        assert (folder, clips, seed) == (tmp_path, 30, 7)
        return {"report": "somewhere/report.html"}

    monkeypatch.setattr("sttm.visual.demo.run", run)
    monkeypatch.setattr("sttm.visual.demo.table", lambda _: "plain")
    assert json.loads(sttm("demo", tmp_path, "--clips", 30, "--seed", 7, "--json").out)
    outcome = sttm("demo", tmp_path, "--clips", 30, "--seed", 7)
    assert outcome.code == 0 and "plain" in outcome.out and "somewhere/report.html" in outcome.out
