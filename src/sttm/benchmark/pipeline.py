"""Whether reading keeps up with the model: decoding alone, the model alone, and the evaluation of both, turn by turn.

Legend: V views of one video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sttm import models
from sttm.config.settings import DataSettings, SplitSettings
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.loader import read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError
from sttm.evaluation.evaluate import evaluate
from sttm.evaluation.inference import reading_threads, scores
from sttm.evaluation.metrics import in_turn, machine, quantiles
from sttm.synth.videos import SynthSettings, make

#: Memory for the clips that the model alone gets; of a longer list the first ones come round again.
KEPT_BYTES = 2**29


def run(
    names: Sequence[str],
    *,
    data: Path | None = None,
    clips: int = 192,
    batch_size: int = 8,
    rounds: int = 5,
    workers: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Time reading, the model, and both together: {"machine", "rows": one a model}.

    In every round each of the three goes once over the same videos, with the same threads and batches, starting with
    another one each time: all videos read with no model, the model on pixels that lie in memory, and `evaluate`. A row
    has the median clips/s of each, and `ratio`: what evaluation reaches of the slower of the two others in the same
    round (the median, with the tenth below and above).

    Args:
        names: bundled names, folders, hub ids.
        data: a list of videos or a folder of them; without one, `clips` videos are made for the time being.
        workers: threads that decode; left out, as `evaluate` has it.

    Raises:
        SttmError: for a model or a list that cannot be, or a list of which no video can be read.
    """
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers = workers or reading_threads()
    with TemporaryDirectory(prefix="sttm-bench-") as folder:
        videos = _videos(data or _made(Path(folder), clips))
        rows = [_row(name, videos, batch_size, rounds, workers, where) for name in names]
    return {"machine": machine(where), "rows": rows}


def _made(folder: Path, clips: int) -> Path:
    """A list of videos such as the bundled models know."""
    settings = SynthSettings("motion", clips, seed=1, train=0, validation=1, test=0)
    return make(folder / "motion", settings) / "validation.json"


def _videos(data: Path) -> VideoSet:
    """The videos of a list, without their labels: speed is what is asked."""
    root = data.parent / "videos" if (data.parent / "videos").is_dir() else None
    found = read_split(DataSettings(test=SplitSettings(list=data, root=root)), "test")
    return replace(found, videos=tuple(replace(video, label=None) for video in found.videos))


def _row(
    name: str, videos: VideoSet, batch_size: int, rounds: int, workers: int, device: torch.device
) -> dict[str, Any]:
    preprocess = Preprocess.from_folder(models.resolve(name))
    network = models.load(name).to(device)
    kept_VTCHW = _read(videos, preprocess, workers, keep=KEPT_BYTES)  # and the files are in the system's cache
    if not kept_VTCHW:
        raise SttmError("none of the videos can be read; sttm predict tells why")
    runs: list[Callable[[], object]] = [
        partial(_read, videos, preprocess, workers),
        partial(_answer, network, kept_VTCHW, len(videos.videos), batch_size),
        partial(evaluate, network, videos, preprocess, batch_size=batch_size, workers=workers),
    ]
    in_turn(runs, 0, device)  # nobody times the first: caches and allocators settle
    speeds = [[len(videos.videos) / seconds for seconds in in_turn(runs, turn, device)[0]] for turn in range(rounds)]
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


def _read(videos: VideoSet, preprocess: Preprocess, workers: int, keep: int = 0) -> list[Tensor]:
    """Read all videos, and keep as many bytes of pixels."""
    kept_VTCHW = []
    for reading in read_ahead(videos.videos, preprocess, (1, 1), workers):
        if reading.pixels_VTCHW is not None and keep > 0:
            kept_VTCHW.append(reading.pixels_VTCHW)
            keep -= reading.pixels_VTCHW.nbytes
    return kept_VTCHW


def _answer(model: nn.Module, kept_VTCHW: list[Tensor], videos: int, batch_size: int) -> None:
    """Run the model as `evaluate` does, on as many videos as there are."""
    endless = cycle(kept_VTCHW)
    for done in range(0, videos, batch_size):
        scores(model, list(islice(endless, min(batch_size, videos - done))), batch_size=batch_size)
