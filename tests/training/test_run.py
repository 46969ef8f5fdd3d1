"""Whole runs on small synthetic videos: they learn, they resume to the bit, and they report what is wrong."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sttm
from sttm.config import Settings, load
from sttm.data import loader, threads
from sttm.evaluation.evaluate import evaluate
from sttm.training import checkpoints, recipe
from sttm.training import run as engine
from tests.helpers import assert_equal_tensors, final_state, holding, tiny_model, write_recipe


@pytest.fixture(scope="session")
def uninterrupted(motion: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    engine.train(load(write_recipe(folder, motion, tiny)))
    return final_state(folder / "run")


def test_a_run_leaves_what_it_promises(config: Path, tiny: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    figures = engine.train(load(config), records.append)
    run = tmp_path / "run"
    assert json.loads((run / "results.json").read_text()) == json.loads(json.dumps(figures))
    assert figures["steps"] == 8 and figures["validation"]["clips"] == 9 and 0.6 < figures["compute"] <= 0.7
    assert load(run / "config.yaml") == load(config)
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6, 8]
    assert [r["step"] for r in records if r.get("event") == "evaluation"] == [4, 8]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert logged == [r for r in records if r.get("event") not in ("start", "end")]
    model = sttm.load(run / "model")
    assert sttm.macs(model) == figures["macs"] and model.config.num_labels == 18
    # The model is the average: neither where training started nor where it ended.
    name = "videomae.encoder.layer.1.output.dense.weight"
    start, end = load_file(tiny / "model.safetensors")[name], final_state(run)[f"weights.{name}"]
    average = model.get_parameter(name)
    assert (start - end).abs().max() > (average - end).abs().max() > 0 < (average - start).abs().max()
    assert (run / "best" / "model.safetensors").exists() and not (run / "best" / checkpoints.STATE).exists()


def test_a_second_run_in_one_folder_is_refused(config: Path, tmp_path: Path) -> None:
    with holding(tmp_path / "run") as holder:
        with pytest.raises(sttm.SttmError, match=f"process {holder.pid} on .* is training in {tmp_path}/run; stop it"):
            engine.train(load(config))
        assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("optimizer", ["lr: 3e-3", "name: muon, lr: 3e-3, muon_lr: 0.02"])
def test_it_learns(optimizer: str, motion: Path, tiny: Path, tmp_path: Path) -> None:
    """Fits eight clips: the loss falls, and evaluation on them gives all their labels."""
    few = json.loads((motion / "train.json").read_text())[:8]
    (tmp_path / "few.json").write_text(json.dumps(few))
    sets = [
        f"data.train.list={tmp_path / 'few.json'}", f"data.validation.list={tmp_path / 'few.json'}",
        "augment={crop: centre, flip: 0}", "model.drop_path=0", f"optimizer={{{optimizer}, steps: 100, batch_size: 8}}",
        "run.evaluate_every=100", "run.log_every=10", f"data.without={absent(motion, few)}",
    ]  # fmt: skip
    records: list[dict[str, Any]] = []
    figures = engine.train(load(write_recipe(tmp_path, motion, tiny), sets), records.append)
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]
    assert figures["validation"]["top1"] == 1


def absent(motion: Path, few: list[dict[str, Any]]) -> str:
    labels = json.loads((motion / "labels.json").read_text())
    present = {entry["template"].replace("[", "").replace("]", "") for entry in few}
    return json.dumps([name for name in labels if name not in present])


@pytest.mark.parametrize("killed_after", [1, 3, 5, 7])
def test_continues_to_the_bit_wherever_it_was_killed(
    killed_after: int,
    config: Path,
    tmp_path: Path,
    uninterrupted: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn = engine._Run._learn
    steps: list[int] = []

    def until(self: Any, batches: Any) -> Any:
        if len(steps) == killed_after:
            raise KeyError("the power went")
        steps.append(1)
        return learn(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(engine._Run, "_learn", until)
        engine.train(load(config))
    engine.train(load(config, ["data.workers=1", "optimizer.micro_batch=4"]))
    assert_equal_tensors(final_state(tmp_path / "run"), uninterrupted)


def test_muon_continues_to_the_bit(config: Path, tmp_path: Path) -> None:
    muon = ["optimizer.name=muon", "optimizer.layer_decay=0.7", "merging.warmup_steps=2"]
    engine.train(load(config, [*muon, f"run.output={tmp_path / 'whole'}"]))

    def stop(record: dict[str, Any]) -> None:
        if record.get("step") == 4 and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(engine.Stopped):
        engine.train(load(config, muon), stop)
    engine.train(load(config, muon))
    state = final_state(tmp_path / "run")
    assert_equal_tensors(state, final_state(tmp_path / "whole"))
    assert any(name.endswith(".momentum_buffer") for name in state)


def start(config: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from sttm.cli import main; main()", "train", str(config), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, pattern: str) -> None:
    for _ in range(6000):
        if any(path.glob(pattern)):
            return
        time.sleep(0.005)
    raise AssertionError(f"no {pattern} in {path}")


@pytest.mark.slow
def test_sigkill_and_sigterm(config: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    """Killed in the middle of writing a checkpoint; then stopped; then run to its end, with the same result."""
    folder = tmp_path / "run" / "checkpoints"
    process = start(config)
    wait_for(folder, "*.part")
    process.kill()
    process.communicate()
    found = checkpoints.latest(folder)
    assert found is None or found[1]["step"] == 3
    (tmp_path / "run" / "log.jsonl").unlink(missing_ok=True)
    process = start(config)
    wait_for(tmp_path / "run", "log.jsonl")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    found = checkpoints.latest(folder)
    assert found is not None
    if found[1]["step"] < 8:  # it may have ended before the signal came
        assert process.returncode == 128 + signal.SIGTERM, err
        assert f"stopped at step {found[1]['step']}, saved in {found[0]}; the same command resumes the run" in err
    assert "Traceback" not in err
    process = start(config, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == 8
    assert_equal_tensors(final_state(tmp_path / "run"), uninterrupted)
    assert not list(folder.glob("*.part"))


def test_a_signal_stops_the_run_after_the_step(config: Path, tmp_path: Path) -> None:
    def at_two(record: dict[str, Any]) -> None:
        if record.get("step") == 2 and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(engine.Stopped) as stopped:
        engine.train(load(config), at_two)
    assert stopped.value.step == 2 and stopped.value.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000002"
    assert checkpoints.latest(tmp_path / "run" / "checkpoints") is not None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_stops_an_evaluation_with_which_the_continuation_begins(
    config: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_signal(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(engine.Stopped) as stopped:
        patch.setattr(engine, "evaluate", with_signal)
        engine.train(load(config))
    assert stopped.value.step == 4 and stopped.value.checkpoint is not None
    assert json.loads((stopped.value.checkpoint / checkpoints.PROGRESS).read_text())["evaluated"] == 3
    records: list[dict[str, Any]] = []
    engine.train(load(config), records.append)
    assert [r["step"] for r in records if r.get("event") == "evaluation"] == [4, 8]
    assert_equal_tensors(final_state(tmp_path / "run"), uninterrupted)


def test_a_signal_stops_an_evaluation_while_it_waits_for_a_video(
    config: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    over, real, sent = threading.Event(), loader.read_crops, list[bool]()

    def stuck(*args: Any, **options: Any) -> Any:
        if not sent:  # once, or it would reach the tests after this one
            sent.append(True)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        over.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(threads, "FAREWELL", 0.1)
    with monkeypatch.context() as patch, pytest.raises(engine.Stopped) as stopped:
        patch.setattr(loader, "read_crops", stuck)
        engine.train(load(config))
    over.set()
    assert stopped.value.step == 4 and stopped.value.checkpoint is not None
    records: list[dict[str, Any]] = []
    engine.train(load(config), records.append)
    assert records[0]["resumed_at"] == 4
    assert_equal_tensors(final_state(tmp_path / "run"), uninterrupted)


@pytest.mark.slow
def test_a_worker_that_cannot_hand_over_a_batch_ends_the_run(config: Path) -> None:
    """As under `ulimit -f 300`, which also limits shared memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 * 1024, 300 * 1024))

    command = [sys.executable, "-m", "sttm", "train", str(config), "--set", "data.workers=1"]
    command += ["--set", "optimizer.micro_batch=8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 2 and "cannot hand over what it decoded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_while_it_waits_for_a_batch(
    number: signal.Signals, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loader._TrainingClips.__getitem__

    def stuck(self: Any, items: Any) -> Any:
        if items[0][0] >= 12:  # in the fourth step, of four videos each
            time.sleep(600)
        return real(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(loader._TrainingClips, "__getitem__", stuck)
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), number))
        with pytest.raises(engine.Stopped) as stopped:
            engine.train(load(config, ["data.workers=1"]), lambda record: timer.start() if "loss" in record else None)
    assert stopped.value.signal == number
    assert stopped.value.step == 3 and stopped.value.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000003"
    records: list[dict[str, Any]] = []
    engine.train(load(config), records.append)
    assert records[0]["resumed_at"] == 3


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_continued_from(
    config: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    engine.train(load(config, ["run.save_every=1"]))
    folder = tmp_path / "run" / "checkpoints"
    last, before = folder / "step-00000008", folder / "step-00000007"
    data = bytearray((last / checkpoints.STATE).read_bytes())
    data[-20] ^= 1
    (last / checkpoints.STATE).write_bytes(data)
    records: list[dict[str, Any]] = []
    engine.train(load(config, ["run.save_every=1"]), records.append)
    assert records[0]["resumed_at"] == 7
    assert records[0]["damaged"] == [f"{last}: {checkpoints.STATE} is not as it was written"]
    assert_equal_tensors(final_state(tmp_path / "run"), uninterrupted)
    for path in folder.iterdir():
        (path / checkpoints.PROGRESS).write_text("{}")
    assert "the last checkpoint is damaged" in refused(load(config))
    assert before.is_dir()


def test_a_list_that_was_edited_meanwhile_is_refused(config: Path, motion: Path, tmp_path: Path) -> None:
    """By what is in it: the videos may move to another folder, and the file may be written anew."""
    entries = json.loads((motion / "train.json").read_text())
    mine = tmp_path / "train.json"
    sets = [f"data.train.list={mine}"]
    mine.write_text(json.dumps(entries))
    engine.train(load(config, sets))
    (tmp_path / "moved").symlink_to(motion / "videos")
    mine.write_text(json.dumps(entries, indent=4))
    engine.train(load(config, [*sets, f"data.root={tmp_path / 'moved'}"]))

    def video(number: int) -> str:
        return f"{entries[number]['id']}.mp4"

    def label(number: int) -> str:
        return str(entries[number]["template"]).replace("[", "").replace("]", "")

    total, first = f"{len(entries)} videos", sorted(map(video, range(5)))[:3]
    relabelled = [entries[0] | {"template": entries[1]["template"]}, *entries[1:]]
    for edited, part in (
        (entries[:-1], f"({total} then and {len(entries) - 1} now; gone: {video(-1)})"),
        (entries[5:], f"({total} then and {len(entries) - 5} now; gone: {', '.join(first)} and 2 more)"),
        (relabelled, f"({total} then and {len(entries)} now; another label: {video(0)} ("),
        (relabelled, f"({label(0)} then, {label(1)} now))"),
        (entries[::-1], f"({total} then and {len(entries)} now; in another order, or listed more than once)"),
    ):
        mine.write_text(json.dumps(edited))
        said = refused(load(config, sets))
        assert f"data.train.list is not what the run in {tmp_path / 'run'} began with (" in said and part in said
    shutil.rmtree(tmp_path / "run" / "lists")
    assert f"({total} then and {len(entries)} now); give" in refused(load(config, sets))


def test_the_parts_that_start_from_random_weights_are_named(config: Path, motion: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    engine.train(load(config, ["optimizer.steps=1"]), records.append)
    assert records[0]["initialised"] == ["classifier"]
    records.clear()
    sets = ["optimizer.steps=1", f"model.start={tmp_path / 'run' / 'model'}", f"run.output={tmp_path / 'other'}"]
    engine.train(load(config, sets), records.append)
    assert records[0]["initialised"] == []


def test_a_test_list_without_labels_is_skipped(motion: Path, config: Path) -> None:
    assert "label" not in json.loads((motion / "test.json").read_text())[0]
    figures = engine.train(load(config, [f"data.test.list={motion / 'test.json'}", "optimizer.steps=1"]))
    assert "test" not in figures and "validation" in figures


def test_a_finished_run_stays_as_it_is(config: Path, tmp_path: Path) -> None:
    first = engine.train(load(config))
    before = final_state(tmp_path / "run")
    again = engine.train(load(config))
    for timing in ("seconds", "clips_per_s"):
        del first["validation"][timing], again["validation"][timing]
    assert first == again
    assert_equal_tensors(final_state(tmp_path / "run"), before)


def test_only_the_last_and_the_best_are_kept(config: Path, tmp_path: Path) -> None:
    engine.train(load(config, ["run.save_every=1", "run.keep=2"]))
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {"step-00000007", "step-00000008"} <= kept and len(kept) <= 3


# --- what is wrong --------------------------------------------------------------------------------------------


def refused(settings: Settings) -> str:
    with pytest.raises(sttm.SttmError) as caught:
        engine.train(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recipe.classification_loss
    calls: list[int] = []

    def sometimes(*args: Any) -> Any:
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 10 else 1)  # in the fifth step, of two micro-batches

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "classification_loss", sometimes)
        sentence = refused(load(config))
    good = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert "the loss is not finite at step 5, on " in sentence and f"the last good checkpoint is {good}" in sentence
    assert sentence.count(".mp4") == 4  # eight clips, two of each video
    assert all(value.isfinite().all() for value in load_file(good / "model.safetensors").values())
    engine.train(load(config))


def test_every_step_has_a_seed_of_its_own(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = recipe.classification_loss
    seeds: list[int] = []

    def noted(*args: Any) -> Any:
        seeds.append(torch.initial_seed())
        return real(*args)

    monkeypatch.setattr(recipe, "classification_loss", noted)
    engine.train(load(config, ["optimizer.steps=4"]))
    assert len(seeds) == 8 and len(set(seeds)) == 4  # two micro-batches a step


def test_a_run_does_not_continue_with_other_settings(config: Path, motion: Path, tmp_path: Path) -> None:
    engine.train(load(config))
    assert "optimizer.lr=0.001 and this config says 0.002" in refused(load(config, ["optimizer.lr=2e-3"]))
    assert "run.seed=0 and" in refused(load(config, ["run.seed=1"]))
    assert "merging.compute=0.7 and" in refused(load(config, ["merging.compute=null"]))
    engine.train(load(config, ["run.log_every=5", "data.workers=1", "optimizer.micro_batch=8"]))
    labels = json.loads((motion / "labels.json").read_text())
    names = list(labels)
    labels[names[3]], labels[names[4]] = labels[names[4]], labels[names[3]]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    sentence = refused(load(config, [f"data.labels={tmp_path / 'labels.json'}"]))
    assert f"a run on other classes ({names[4]!r} now and {names[3]!r} there)" in sentence


def test_the_motion_feature_is_trained_from_its_start_on(config: Path, tmp_path: Path) -> None:
    for share, trained in ((0.9, False), (0.5, True)):
        engine.train(
            load(config, ["optimizer.steps=2", f"merging.motion_start={share}", f"run.output={tmp_path}/{share}"])
        )
        state = final_state(tmp_path / str(share))
        maps = [
            value for name, value in state.items() if name.startswith("weights.") and name.endswith("motion.map.bias")
        ]
        assert maps and all(bool(value.any()) == trained for value in maps)


def test_settings_that_contradict_each_other(config: Path) -> None:
    assert "warmup_steps=8 takes all" in refused(load(config, ["merging.warmup_steps=8"]))
    for name in ("crayons", "trackio"):  # one that is unknown, one that is not installed here
        assert f"run.trackers has {name}, which is unknown or not installed; available are tensorboard" in refused(
            load(config, [f"run.trackers=[{name}]"])
        )


def test_unreadable_videos_are_named_and_left_out(motion: Path, config: Path, tmp_path: Path) -> None:
    broken = tmp_path / "videos"
    broken.mkdir()
    for path in (motion / "videos").iterdir():
        (broken / path.name).symlink_to(path)
    victim = json.loads((motion / "train.json").read_text())[5]["id"]
    (broken / f"{victim}.mp4").unlink()
    (broken / f"{victim}.mp4").write_bytes(b"not a video")
    figures = engine.train(load(config, [f"data.root={broken}", "optimizer.steps=20"]))
    assert [Path(name).stem for name in figures["unreadable"]] == [victim]
    sets = [f"data.root={broken}", "optimizer.steps=20", "data.max_missing=0.001", f"run.output={tmp_path / 'other'}"]
    assert "1 of 72 training videos cannot be read, more than data.max_missing=0.001" in refused(load(config, sets))


def test_a_folder_without_the_right_to_write(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:  # simulated: an administrator may write anywhere
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", read_only)
    assert f"cannot write to run.output={tmp_path / 'run'}: Read-only file system" in refused(load(config))


def test_an_output_that_is_a_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "cannot write to run.output" in refused(load(config, [f"run.output={tmp_path / 'taken'}"]))


def test_nan_weights_in_the_start_are_refused(config: Path, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    model = sttm.load(tiny)
    sttm.save(model, folder)
    state = load_file(folder / "model.safetensors")
    state["fc_norm.weight"][0] = float("inf")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "not finite (fc_norm.weight)" in refused(load(config, [f"model.start={folder}"]))


def test_distillation_checkpointing_and_bf16_run(config: Path, motion: Path, tmp_path: Path) -> None:
    labels = list(json.loads((motion / "labels.json").read_text()))
    model = tiny_model("videomae")
    model.config.id2label = dict(enumerate(labels))
    model.classifier = torch.nn.Linear(24, len(labels))
    model.config.num_labels = len(labels)
    teacher = sttm.save(model, tmp_path / "teacher")
    sets = [
        "distillation.weight=0.5", f"model.start={teacher}", "model.checkpointing=true", "run.precision=bf16",
        "optimizer.steps=2", "merging.warmup_steps=1", "run.trackers=[tensorboard]",
    ]  # fmt: skip
    figures = engine.train(load(config, sets))
    assert figures["steps"] == 2
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_accumulated_micro_batches_are_one_batch(config: Path, tmp_path: Path) -> None:
    same = ["optimizer.steps=3", "data.validation=null", "model.drop_path=0", "run.log_every=1"]
    logs: dict[int, list[tuple[float, float]]] = {}
    for clips in (4, 8):  # of a batch of 8
        records: list[dict[str, Any]] = []
        output = f"run.output={tmp_path / str(clips)}"
        engine.train(load(config, [*same, f"optimizer.micro_batch={clips}", output]), records.append)
        logs[clips] = [(r["loss"], r["gradient_norm"]) for r in records if "loss" in r]
    assert len(logs[4]) == 3
    for in_parts, at_once in zip(logs[4], logs[8], strict=True):
        assert in_parts == pytest.approx(at_once, rel=1e-4)


@pytest.mark.extended
def test_compiled_training_learns_the_same(config: Path, tmp_path: Path) -> None:
    same = ["optimizer.steps=2", "data.validation=null", "model.drop_path=0", "run.log_every=1"]
    losses: list[list[float]] = []
    for compiled in ("true", "false"):
        records: list[dict[str, Any]] = []
        output = f"run.output={tmp_path / compiled}"
        engine.train(load(config, [*same, f"model.compile={compiled}", output]), records.append)
        losses.append([record["loss"] for record in records if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 2
