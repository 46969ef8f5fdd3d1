"""Two processes, two nodes, sharded weights: the same training as one process with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sttm
from sttm.config import load
from sttm.training import run as engine
from tests.helpers import write_recipe

# Drop path is drawn in each process; all else is a function of the global batch.
SAME = ["model.drop_path=0", "optimizer.steps=5", "optimizer.micro_batch=null", "run.evaluate_every=3"]


@pytest.fixture(scope="session")
def alone(motion: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    engine.train(load(write_recipe(folder, motion, tiny), SAME))
    return folder / "run"


def torchrun(config: Path, *options: str, sets: list[str] | None = None) -> subprocess.Popen[str]:
    overrides = [part for text in SAME + (sets or []) for part in ("--set", text)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "sttm", "train", str(config), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        outputs.append(out)
    return outputs


def assert_same_weights(run: Path, alone: Path) -> None:
    mine, its = load_file(run / "model" / "model.safetensors"), load_file(alone / "model" / "model.safetensors")
    assert mine.keys() == its.keys() == sttm.load(alone / "model").state_dict().keys()
    for name, value in its.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5, msg=name)


def assert_same_figures(run: Path, alone: Path) -> None:
    figures = json.loads((run / "results.json").read_text())
    assert figures["validation"]["clips"] == 9  # each once, though nine do not divide by two
    mine, its = losses(run), losses(alone)
    assert mine.keys() == its.keys() == {2, 4, 5}
    for step, record in mine.items():
        assert record["loss"] == pytest.approx(its[step]["loss"], rel=1e-4)
        assert record["gradient_norm"] == pytest.approx(its[step]["gradient_norm"], rel=1e-3)


def assert_as_alone(run: Path, alone: Path) -> None:
    assert_same_weights(run, alone)
    assert_same_figures(run, alone)


def losses(run: Path) -> dict[int, dict[str, Any]]:
    """Return the records of the log by step."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in records if "loss" in record}


@pytest.mark.slow
def test_two_processes(config: Path, alone: Path, tmp_path: Path) -> None:
    (out,) = finish(torchrun(config, "--standalone", "--nproc-per-node", "2"))
    assert_as_alone(tmp_path / "run", alone)
    assert out.count("top-1 on validation") == 2  # only the first process prints


@pytest.mark.extended
def test_two_processes_with_muon(config: Path, tmp_path: Path) -> None:
    """Both have the same gradients, momentum and losses.

    The weights are not compared: Muon orthogonalises in bf16, which amplifies rounding if a gradient is of low rank.
    The same happens in one process with other micro-batches.
    """
    muon = ["optimizer.name=muon", "run.save_every=1", "run.keep=5"]
    engine.train(load(config, [*SAME, *muon, f"run.output={tmp_path / 'alone'}"]))
    finish(torchrun(config, "--standalone", "--nproc-per-node", "2", sets=muon))
    run, alone = (
        tmp_path / name / "checkpoints" / "step-00000001" / "training.safetensors" for name in ("run", "alone")
    )
    mine, its = ({k: v for k, v in load_file(path).items() if k.startswith("optimizer.")} for path in (run, alone))
    assert mine.keys() == its.keys() and sum(name.endswith(".momentum_buffer") for name in mine) == 24
    for name, value in its.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-7, msg=name)
    assert_same_figures(tmp_path / "run", tmp_path / "alone")


@pytest.mark.extended
def test_two_nodes(config: Path, alone: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        torchrun(
            config, "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank),
            "--master-addr", "127.0.0.1", "--master-port", str(port),
        )
        for rank in range(2)
    ]  # fmt: skip
    finish(*nodes)
    assert_as_alone(tmp_path / "run", alone)


@pytest.mark.slow
def test_sharded_weights(config: Path, alone: Path, tmp_path: Path) -> None:
    """FSDP, continued by one process from the third step: shards are gathered when they are saved."""
    sharded = ["run.strategy=fsdp", "run.save_every=3"]
    finish(torchrun(config, "--standalone", "--nproc-per-node", "2", sets=sharded))
    assert_as_alone(tmp_path / "run", alone)
    model = sttm.load(tmp_path / "run" / "model")
    assert model.config.architectures == ["VideoMAEForVideoClassification"]
    kept = tmp_path / "run" / "checkpoints"
    for path in kept.glob("step-00000005"):
        path.rename(tmp_path / "away")
    engine.train(load(config, [*SAME, *sharded]))
    assert_same_weights(tmp_path / "run", alone)
