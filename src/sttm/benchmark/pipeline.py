"""Whether reading keeps up with the model: reading alone, the model alone, and evaluation with both, in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sttm import models
from sttm.benchmark.timing import in_turn, quantiles
from sttm.config.sections import DataSettings, SplitSettings
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.loader import Sample, read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.devices import device_of, machine
from sttm.errors import SttmError
from sttm.evaluation.evaluate import evaluate
from sttm.evaluation.inference import classify, reading_threads
from sttm.synth.videos import SynthSettings, make

#: Memory for the clips that the model runs on without reading; of a longer list the first ones are used again.
PIXEL_BYTES = 2**29


def run(
    names: Sequence[str],
    *,
    data: Path | None = None,
    clips: int = 192,
    batch_size: int = 8,
    rounds: int = 5,
    workers: int | None = None,
    device: str = "auto",
    advance: Callable[[int, int], None] = lambda rounds, total: None,
) -> dict[str, Any]:
    """Time reading, the model, and both together: {"machine", "rows": one for each model}.

    In every round each of the three runs once over the same videos, with the same threads and batches, starting with
    another one each time: reading without a model, the model on pixels in memory, and `evaluate`. A row has the
    median clips/s of each, and `ratio`: the speed of evaluation over that of the slower of the two others in the same
    round (median, 10th and 90th percentile).

    Args:
        names: bundled names, folders, hub ids.
        data: an annotation file, or a folder of videos; without one, `clips` synthetic videos in a temporary folder.
        workers: threads that decode; left out, as in `evaluate`.
        device: "auto", "cpu" or "cuda"; auto is CUDA where there is a CUDA device.
        advance: called after each round, the first to warm up, with 1 and the number of all rounds.

    Raises:
        SttmError: for a model or a list that cannot be loaded, or a list of which no video can be read.
    """
    where = device_of(device)
    workers = workers or reading_threads()
    with TemporaryDirectory(prefix="sttm-bench-") as folder:
        if data is None:  # videos of the classes that the bundled models know
            settings = SynthSettings("motion", clips, seed=1, train=0, validation=1, test=0)
            data = make(Path(folder) / "motion", settings) / "validation.json"
        videos = _videos(data)
        count = partial(advance, 1, len(names) * (rounds + 1))
        rows = [_row(name, videos, batch_size, rounds, workers, where, count) for name in names]
    return {"machine": machine(where), "rows": rows}


def _videos(data: Path) -> VideoSet:
    """Return the videos of a list without their labels: only speed is measured."""
    root = data.parent / "videos" if (data.parent / "videos").is_dir() else None
    found = read_split(DataSettings(test=SplitSettings(list=data, root=root)), "test")
    return replace(found, videos=tuple(replace(video, label=None) for video in found.videos))


def _row(
    name: str,
    videos: VideoSet,
    batch_size: int,
    rounds: int,
    workers: int,
    device: torch.device,
    count: Callable[[], object],
) -> dict[str, Any]:
    """Return the row of one model."""
    network, preprocess = models.load_with_preprocess(name)
    network = network.to(device)
    kept = _read(videos, preprocess, workers, keep=PIXEL_BYTES)  # afterwards the files are in the system's cache
    if not kept:
        raise SttmError("none of the videos can be read; sttm predict tells why")
    runs: list[Callable[[], object]] = [
        partial(_read, videos, preprocess, workers),
        # as `evaluate` does, on as many clips, to the end
        lambda: deque(classify(network, islice(cycle(kept), len(videos.videos)), batch_size=batch_size), maxlen=0),
        partial(evaluate, network, videos, preprocess, batch_size=batch_size, workers=workers),
    ]
    in_turn(runs, 0, device)  # not timed: caches and allocators settle
    count()
    speeds = []
    for turn in range(rounds):
        speeds.append([len(videos.videos) / seconds for seconds in in_turn(runs, turn, device)[0]])
        count()
    reading, model, both = (quantiles([speed[number] for speed in speeds])["p50"] for number in range(3))
    ratio = quantiles([speed[2] / min(speed[:2]) for speed in speeds])
    return {
        "model": name,
        "clips": len(videos.videos),
        "batch": batch_size,
        "reading_threads": workers,
        "model_threads": torch.get_num_threads(),
        "reading_clips_per_s": round(reading, 2),
        "model_clips_per_s": round(model, 2),
        "evaluation_clips_per_s": round(both, 2),
        "ratio": {level: round(value, 3) for level, value in ratio.items()},
        "slower": "reading" if reading < model else "model",
    }


def _read(videos: VideoSet, preprocess: Preprocess, workers: int, keep: int = 0) -> list[Sample]:
    """Read all videos, and return those that fit into so many bytes of pixels, at least one if any can be read."""
    kept = []
    for sample in read_ahead(videos.videos, preprocess, (1, 1), workers):
        if sample.pixels_VTCHW is not None and keep > 0:
            kept.append(sample)
            keep -= sample.pixels_VTCHW.nbytes
    return kept
