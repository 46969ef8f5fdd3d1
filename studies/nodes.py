"""Train on two nodes, each in a network namespace of its own; kill one in the midst, and start it again.

    sudo python studies/nodes.py --out results/kills/nodes.json

Both nodes run `torchrun ... -m sttm train` with one rendezvous. The second one, its launcher and its worker, is killed
with SIGKILL between two checkpoints, and started again; the first one's launcher notices, starts its worker again,
and the run goes on from the last checkpoint. In the end the steps must be those of a run that nothing disturbed, with
the same losses, and the last weights finite and the same. The exit code is 1 if not. Needs Linux, root, and iproute2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.processes import kill
from harness.provenance import provenance, publish, sentence
from harness.tables import markdown
from safetensors.torch import load_file
from torch import Tensor

from sttm.synth.videos import SynthSettings, make

STEPS = 16
#: The step after which the node is killed, at the earliest: between two checkpoints, so that steps must be done again.
LAST = 6
#: Seconds that a run may take.
PATIENCE = 1800
#: A launcher that stays tells its address in the first round alone, unless this is set: one that is new would never
#: learn it, and both would give up after 60 s.
NO_SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
#: Differences from an undisturbed run that are rounding: the sums of two processes, in whatever order they come.
LOSS, WEIGHT = 1e-4, 1e-4
CONFIG = """
data: {{train: {{list: {made}/train.json}}, validation: {{list: {made}/validation.json}}, root: {made}/videos,
  labels: {made}/labels.json, workers: 0}}
model: {{start: sttm-motion-plain}}
merging: {{compute: 0.7}}
optimizer: {{lr: 1e-4, steps: {steps}, batch_size: 4}}
run: {{output: {output}, device: cpu, trackers: [], save_every: 4, evaluate_every: {steps}, log_every: 1}}
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with TemporaryDirectory(prefix="sttm-nodes-") as folder, network() as nodes:
        found = provenance("python studies/nodes.py " + " ".join(sys.argv[1:])) | run(Path(folder), nodes)
    print(json.dumps(found, indent=1))
    if given.out is not None:
        publish(given.out, found, table_of)
    sys.exit(int(not good(found)))


def good(found: dict[str, Any]) -> bool:
    """Return whether the run that lost a node ended as the one that did not."""
    same = found["largest_difference_of_losses"] <= LOSS and found["largest_difference_of_weights"] <= WEIGHT
    return bool(found["steps_complete"] and found["weights_finite"] and same and found["resumed_from_step"])


def table_of(found: dict[str, Any]) -> str:
    """Return the table of the page."""
    lines = [
        ("steps of the run", f"{found['steps']}, {'all' if found['steps_complete'] else 'NOT all'} of them done"),
        ("the second node was killed after step", f"{found['killed_after_step']}"),
        ("the run went on from the checkpoint of step", f"{found['resumed_from_step']}"),
        ("steps done twice", f"{found['steps_done_twice']}"),
        ("largest difference of a loss from the undisturbed run", f"{found['largest_difference_of_losses']:.1e}"),
        ("and of a weight", f"{found['largest_difference_of_weights']:.1e}"),
    ]
    return markdown(("two nodes", "one killed"), lines) + f"\n\n{sentence(found)}\n"


@contextmanager
def network() -> Iterator[list[tuple[str, str]]]:
    """Yield two namespaces joined by a cable, and the address of each."""
    names = [f"sttm{os.getpid()}{end}" for end in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]
    try:
        for name in names:
            _ip(f"netns add {name}")
        _ip(f"link add veth0 netns {names[0]} type veth peer name veth0 netns {names[1]}")
        for name, address in zip(names, addresses, strict=True):
            _ip(f"-n {name} addr add {address}/24 dev veth0")
            _ip(f"-n {name} link set veth0 up")
            _ip(f"-n {name} link set lo up")
        yield list(zip(names, addresses, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def run(folder: Path, nodes: list[tuple[str, str]]) -> dict[str, Any]:
    """Train undisturbed and disturbed, and return what became of both."""
    made = make(folder / "made", SynthSettings("motion", 60, frames=16, size=56), workers=1)
    configs = {}
    for name in ("whole", "killed"):
        configs[name] = folder / f"{name}.yaml"
        configs[name].write_text(CONFIG.format(made=made, output=folder / name, steps=STEPS))
    both = [_torchrun(nodes[i], nodes[0][1], configs["whole"], 29500, folder / f"whole-{i}.log") for i in (0, 1)]
    assert [process.wait(PATIENCE) for process in both] == [0, 0], (folder / "whole-0.log").read_text()[-2000:]

    first, second = (
        _torchrun(nodes[i], nodes[0][1], configs["killed"], 29501, folder / f"killed-{i}.log") for i in (0, 1)
    )
    while max(_losses(folder / "killed"), default=0) < LAST:
        assert first.poll() is None, (folder / "killed-0.log").read_text()[-2000:]
        time.sleep(0.1)
    # Also the worker, which is in a session of its own and would train to the end without its launcher.
    for pid in subprocess.run(["ip", "netns", "pids", nodes[1][0]], capture_output=True, check=True).stdout.split():
        kill(int(pid))
    second.wait()
    time.sleep(2)
    before = _records(folder / "killed")
    second = _torchrun(nodes[1], nodes[0][1], configs["killed"], 29501, folder / "killed-1.log")
    codes = [first.wait(PATIENCE), second.wait(PATIENCE)]
    if codes != [0, 0]:
        for log in sorted(folder.glob("killed-*.log")):
            print(log.name, log.read_text()[-6000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"the launchers ended with {codes}")
    return {"nodes": 2, "steps": STEPS, "exit_codes": codes} | compared(folder, len(before))


def compared(folder: Path, before: int) -> dict[str, Any]:
    """Return what became of the run whose node was killed, next to the undisturbed one.

    Args:
        before: how many records the run had logged when its node was gone.
    """
    first, then = (
        [record["step"] for record in records if "loss" in record]
        for records in (_records(folder / "killed")[:before], _records(folder / "killed")[before:])
    )
    whole, killed = _losses(folder / "whole"), _losses(folder / "killed")
    mine, its = (_weights(folder / name) for name in ("killed", "whole"))
    return {
        "killed_after_step": max(first, default=0),
        "resumed_from_step": min(then, default=1) - 1,
        "steps_done_twice": len({*first} & {*then}),
        "steps_complete": sorted(killed) == sorted(whole) == list(range(1, STEPS + 1)) and then[-1:] == [STEPS],
        "weights_finite": all(bool(value.isfinite().all()) for value in mine.values()),
        "largest_difference_of_losses": max(
            (abs(whole[s] - killed[s]) for s in whole.keys() & killed.keys()), default=0
        ),
        "largest_difference_of_weights": max(float((mine[name] - its[name]).abs().max()) for name in its),
    }


def _weights(run: Path) -> dict[str, Tensor]:
    """Return the last weights of a run."""
    return load_file(run / "model" / "model.safetensors")


def _torchrun(node: tuple[str, str], host: str, config: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the launcher of a node in its namespace, in a process group of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{port}", "--max-restarts", "3"]
    launcher += ["--local-addr", node[1], "--rdzv-conf", f"is_host={int(node[1] == host)}"]  # no name service here
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "veth0", NO_SHARED_STORE: "1"}
    command = ["ip", "netns", "exec", node[0], *launcher, "-m", "sttm", "train", str(config)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def _losses(output: Path) -> dict[int, float]:
    """Return the loss of each step, as the run logged it last."""
    return {record["step"]: record["loss"] for record in _records(output) if "loss" in record}


def _records(output: Path) -> list[dict[str, Any]]:
    """Return what a run has logged so far."""
    log = output / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


if __name__ == "__main__":
    main()
