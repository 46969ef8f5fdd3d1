"""Work out what ten million clips take on 8 and on 64 GPUs, from rates that are measured, and check the working.

    python studies/scaling.py --out results/kills/scaling.json

Measured, on this machine: the two stages of `sttm batch` by themselves, on one core each, with small clips and with
clips of 10 s at 30 frames a second; and whole runs on one core and on two. The simulation of `harness.simulation` gets
the rates of the stages and must come near the runs. It then simulates fleets. Their decoders have the measured rate of
long clips; their GPUs, of which this machine has none, do `--tflops` 10^12 floating-point operations a second, by the
multiply-adds of VideoMAE-B, which is an assumption and is named so on the page.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import av
from harness.corpora import BATCH, linked, parts_of
from harness.provenance import provenance, publish, sentence
from harness.simulation import Fleet, simulate
from harness.tables import markdown

from sttm.synth.clips import render

CLIPS = 10_000_000
#: Multiply-adds of VideoMAE-B on one clip of 16 frames of 224 x 224, as `sttm.macs` counts them; results/speed.json.
MACS = {1.0: 180_344_893_440, 0.62: 111_746_793_996}
#: Bytes of the pixels of that clip, which wait in memory as uint8.
PIXELS = 16 * 224 * 224 * 3
GPUS_A_NODE = 8
#: Seconds until a lost node is there again, and a lost driver has been started again.
NODE_BACK, DRIVER_BACK = 600.0, 120.0
#: Decoders, or models, that a fleet's simulation takes as one of as many times the speed, with as many groups in hand.
TEAM = 8
PART, GROUP = 64, 8
#: Groups of the stages that are not timed.
WARM_UP = 2


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=2048, help="small clips of each measured run")
    options.add_argument("--tflops", type=float, default=400.0, help="what a GPU does: 40 %% of an H100's bf16")
    options.add_argument("--storage", type=float, default=5.0, help="GB a second that all nodes read together")
    options.add_argument("--from", dest="measured", type=Path, help="a file of an earlier run, whose rates are taken")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    if given.measured is None:
        with TemporaryDirectory(prefix="sttm-scaling-") as folder:
            measured = measure(Path(folder), given.clips)
        origin = provenance("python studies/scaling.py " + " ".join(sys.argv[1:]))
    else:
        found = json.loads(given.measured.read_text(encoding="utf-8"))
        measured, origin = found["measured"], {name: found[name] for name in ("command", "commit", "machine")}
    rows = list(fleets(measured, given.tflops, given.storage))
    found = origin | {
        "measured": measured, "check": check(measured), "tflops": given.tflops, "storage_gb_s": given.storage,
        "clips": CLIPS, "fleets": rows,
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if given.out is not None:
        publish(given.out, found, table_of)


def measure(folder: Path, clips: int) -> dict[str, float]:
    """Return clips/s of the stages by themselves, and of runs on one core and on two."""
    source, cores = linked(folder, clips), sorted(os.sched_getaffinity(0))
    assert len(cores) >= 2, "two cores are needed"
    found = {f"run_{number}_cores": run(source, folder / f"rows-{number}", cores[:number]) for number in (1, 2)}
    os.sched_setaffinity(0, cores[:1])
    found["decode_small"], found["answer"] = stages(source, folder / "small")
    long = folder / "long.txt"
    long.write_text("".join(f"{_long_clip(folder / f'long-{number}.mp4', number)}\n" for number in range(GROUP)))
    found["long_bytes"] = median(path.stat().st_size for path in folder.glob("long-*.mp4"))
    found["decode_long"], _ = stages(long, folder / "long")
    os.sched_setaffinity(0, cores)
    return {name: round(value, 2) for name, value in found.items()}


def run(source: Path, output: Path, cores: list[int]) -> float:
    """Run `sttm batch` on some cores; return its clips/s from the end of the first part to that of the last."""
    command = ["taskset", "-c", ",".join(map(str, cores)), *BATCH, str(source), str(output), "--model", "sttm-motion"]
    command += ["--part", str(PART), "--batch-size", str(GROUP), "--decoders", "1", "--models", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    written = sorted((when / 1e9, rows) for rows, when in parts_of(output).values())
    seconds = written[-1][0] - written[0][0]
    return sum(rows for _, rows in written[1:]) / seconds if seconds else 0.0


def stages(source: Path, folder: Path, groups: int = 32) -> tuple[float, float]:
    """Return the clips/s of the two stages of a run, each by itself, in this process, over so many groups."""
    from sttm.corpus import inputs
    from sttm.corpus import run as engine
    from sttm.corpus.stages import Answer, Decode, groups_of

    folder.mkdir()
    videos = inputs.find(source)
    settings = engine._settings(
        engine.Request(source, folder, model="sttm-motion", batch_size=GROUP, part=PART, device="cpu"), videos
    )
    inputs.write(videos, folder, PART)
    decode, answer = Decode(str(folder), settings, 60.0, 4.0), Answer(settings, 1)
    seconds: tuple[list[float], list[float]] = ([], [])
    numbers = [group for part in range(-(-settings.videos // PART)) for group in groups_of(part, settings)]
    for group in islice(cycle(numbers), groups + WARM_UP):
        began = time.perf_counter()
        pixels = decode({"group": group})
        between = time.perf_counter()
        answer(pixels)
        for kind, value in zip(seconds, (between - began, time.perf_counter() - between), strict=True):
            kind.append(value)
    decode.reading.close()
    return GROUP / median(seconds[0][WARM_UP:]), GROUP / median(seconds[1][WARM_UP:])


def _long_clip(path: Path, number: int) -> Path:
    """Write a clip of 10 s at 30 frames a second, 340 x 256 as copies of Kinetics are, with x264's own settings."""
    frames_THW3 = render("scene", number, 0, frames=30, size=340)[0][:, :256]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 256, 340, "yuv420p"
        for index in range(300):
            turn = index % 58  # there and back
            picture = frames_THW3[min(turn, 58 - turn)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def check(measured: dict[str, float]) -> list[dict[str, float]]:
    """Return what the simulation says of the measured runs, next to them."""
    rows = []
    for cores in (1, 2):
        fleet = Fleet(1, 1, 1 / measured["decode_small"], 1 / measured["answer"], cores=cores, group=GROUP, part=PART)
        simulated, was = 2048 / simulate(fleet, 2048).seconds, measured[f"run_{cores}_cores"]
        rows.append(
            {"cores": cores, "measured": was, "simulated": round(simulated, 2), "ratio": round(was / simulated, 3)}
        )
    return rows


def fleets(measured: dict[str, float], tflops: float, storage_gb_s: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each fleet: with 16 cores a GPU, as machines are sold, and with those that its GPUs need."""
    for gpus in (8, 64):
        for compute, macs in MACS.items():
            rate = tflops * 1e12 / (2 * macs)
            wanted = math.ceil(1.05 * rate / measured["decode_long"])
            for cores in sorted({16, wanted}):
                nodes, decoders = gpus // GPUS_A_NODE, gpus * cores
                storage_s = measured["long_bytes"] / (storage_gb_s * 1e9)
                fleet = Fleet(
                    decoders // TEAM, gpus // TEAM, 1 / measured["decode_long"] / TEAM, 1 / rate / TEAM,
                    storage_s, nodes, group=GROUP * TEAM, waiting=2 * decoders // TEAM, part=1024,
                )  # fmt: skip
                yield {"gpus": gpus, "compute": compute, "cores_a_gpu": cores} | costs(fleet, measured["long_bytes"])


def costs(fleet: Fleet, clip_bytes: float) -> dict[str, Any]:
    """Return how long a fleet takes, what of it is fully used, and what a lost node and a lost driver cost."""
    whole = simulate(fleet, CLIPS)
    node, driver = (
        simulate(fleet, CLIPS, lost=what, at_s=whole.seconds / 2, back_s=back)
        for what, back in (("node", NODE_BACK), ("driver", DRIVER_BACK))
    )
    per_second = CLIPS / whole.seconds
    return {
        "hours": round(whole.seconds / 3600, 2),
        "clips_per_s": round(per_second),
        "read_gb_s": round(per_second * clip_bytes / 1e9, 3),
        "waiting_gib_a_node": round(2 * fleet.decoders * fleet.group * PIXELS / 2**30 / fleet.nodes, 1),
        "busy": {kind: round(share, 3) for kind, share in whole.busy.items()},
        "bottleneck": max(whole.busy, key=lambda kind: whole.busy[kind]),
        "node_lost": {"minutes": round((node.seconds - whole.seconds) / 60, 1), "clips_redone": node.redone},
        "driver_lost": {"minutes": round((driver.seconds - whole.seconds) / 60, 1), "clips_redone": driver.redone},
    }


def table_of(found: dict[str, Any]) -> str:
    """Return the tables of the page: rates, check, fleets."""
    of = found["measured"]
    rates = [
        ("decode, one core, small clips", f"{of['decode_small']:.1f}"),
        ("decode, one core, clips of 10 s", f"{of['decode_long']:.2f}"),
        ("answer (sttm-motion), one core", f"{of['answer']:.1f}"),
    ]
    checked = [
        (f"{row['cores']}", f"{row['measured']:.1f}", f"{row['simulated']:.1f}", f"{row['ratio']:.2f}")
        for row in found["check"]
    ]
    fleets = [
        (
            f"{row['gpus']}", f"{row['compute']:g}", f"{row['cores_a_gpu']}", f"{row['hours']:.2f}", row["bottleneck"],
            f"{row['busy']['models']:.0%}", f"{row['read_gb_s']:.2f}", f"{row['waiting_gib_a_node']:.0f}",
            f"{row['node_lost']['minutes']:.1f} min, {row['node_lost']['clips_redone']:,} clips",
            f"{row['driver_lost']['minutes']:.1f} min, {row['driver_lost']['clips_redone']:,} clips",
        )
        for row in found["fleets"]
    ]  # fmt: skip
    heads = ("GPUs", "compute", "cores a GPU", "hours", "bottleneck", "GPUs busy", "GB/s read", "GiB waiting a node",
             "a node lost", "the driver lost")  # fmt: skip
    tables = [
        markdown(("measured", "clips/s"), rates),
        markdown(("cores", "clips/s of a run", "clips/s simulated", "ratio"), checked),
        markdown(heads, fleets),
    ]
    assumed = (
        f"{found['clips']:,} clips of {of['long_bytes'] / 1e3:.0f} kB, model VideoMAE-B. Assumed: {found['tflops']:g} "
        f"TFLOP/s a GPU, storage of {found['storage_gb_s']:g} GB/s, a node back after {NODE_BACK / 60:.0f} min, a "
        f"driver after {DRIVER_BACK / 60:.0f} min."
    )
    return "\n\n".join([*tables, assumed, sentence(found)]) + "\n"


if __name__ == "__main__":
    main()
