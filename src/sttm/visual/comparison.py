"""A plain and a merged model on the same videos, synthetic or files: classified in turn, counted and timed.

Legend: N videos, K classes, V views of one video (one here).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttm import models
from sttm.benchmark.timing import in_turn, quantiles
from sttm.data.loader import Sample, read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.devices import device_of, machine
from sttm.errors import SttmError
from sttm.evaluation.inference import classify, labels_of
from sttm.evaluation.metrics import Accuracy
from sttm.patching import api
from sttm.synth.videos import SynthSettings, make, video_path

#: The seed of the videos that the bundled models were trained on.
TRAINING_SEED = 0
#: Threads that read a batch; nothing is read while a model is timed.
READERS = 2

Advance = Callable[[int, int], None]


@dataclass
class Comparison:
    """Two models on the same videos: the plain one first, the merged one second."""

    names: tuple[str, str]
    networks: tuple[nn.Module, nn.Module]
    preprocess: Preprocess
    labels: list[str]
    """The class names of both models, by number."""
    device: torch.device
    files: list[Video] = field(default_factory=list)
    truth_N: Tensor = field(default_factory=lambda: torch.empty(0))
    """The class of each video."""
    scores: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    """Class probabilities [K] of each video, by model."""
    batches: list[tuple[int, float, float]] = field(default_factory=list)
    """Videos, and the seconds of either model, of each batch."""
    remedy: str = ""
    """What to do about a video that cannot be read."""
    reading_seconds: float = 0.0
    """Time to decode and preprocess all videos."""

    @classmethod
    def load(cls, plain: str, merged: str) -> Comparison:
        """Load both models, and check that they can be compared."""
        device = device_of()
        networks, preprocesses = zip(*map(models.load_with_preprocess, (plain, merged)), strict=True)
        if api.is_merged(networks[0]):
            raise SttmError(f"the demo needs a plain model to compare with, and {plain} is merged; name a plain one")
        if not api.is_merged(networks[1]):
            raise SttmError(f"the demo needs a merged model, and {merged} is plain; sttm.apply and sttm.save make one")
        labels = [labels_of(network) for network in networks]
        if preprocesses[0] != preprocesses[1] or labels[0] != labels[1]:
            wrong = f"{plain} and {merged} do not take the same pixels or do not know the same classes"
            raise SttmError(f"{wrong}; name two that were trained alike")
        moved = (networks[0].to(device), networks[1].to(device))
        return cls((plain, merged), moved, preprocesses[0], labels[0], device)

    def make_videos(self, folder: Path, clips: int, seed: int, workers: int | None, advance: Advance) -> int:
        """Make the videos that an earlier run has not made, take all, and return how many were made."""
        settings, made = SynthSettings("motion", clips, seed, train=0, validation=1, test=0), 0

        def count(videos: int, missing: int) -> None:
            nonlocal made
            made += videos
            advance(videos, missing)

        inside = make(folder / f"motion-{clips}-clips-seed-{seed}", settings, workers=workers, advance=count)
        rows = json.loads((inside / "validation.json").read_text(encoding="utf-8"))
        labels = {int(row["id"]): row["template"].replace("[", "").replace("]", "") for row in rows}
        files = [inside / video_path(settings, index) for index in range(clips)]
        remedy = "delete the file, and the demo makes it again"
        self.take_videos(files, [labels[index] for index in range(clips)], remedy)
        return made

    def take_videos(self, files: Sequence[Path], labels: Sequence[str], remedy: str) -> None:
        """Take videos and the names of their classes; raise SttmError for a class that the models do not know."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        unknown = sorted(set(labels) - numbers.keys())
        if unknown:
            wrong = f"{self.names[1]} knows no class {unknown[0]!r}"
            raise SttmError(f"{wrong}; name models that were trained on the classes of these videos")
        self.files, self.remedy = [Video(str(file)) for file in files], remedy
        self.truth_N = torch.tensor([numbers[label] for label in labels])

    def read(self, files: Sequence[Video]) -> list[Sample]:
        """Read videos, their pixels on the device of the models; raise SttmError for a video that cannot be read."""
        samples = []
        for sample in read_ahead(files, self.preprocess, (1, 1), READERS):
            if sample.pixels_VTCHW is None:
                raise SttmError(f"{sample.path}: {sample.error}; {self.remedy}")
            samples.append(replace(sample, pixels_VTCHW=sample.pixels_VTCHW.to(self.device)))
        return samples

    def classify_in_turn(self, batch: int, advance: Callable[[int], None], turns: int = 1) -> None:
        """Classify every video with both models, and time `turns` of it; nothing else runs while a model is timed."""
        for number, start in enumerate(range(0, len(self.files), batch)):
            started = time.perf_counter()
            samples = self.read(self.files[start : start + batch])
            self.reading_seconds += time.perf_counter() - started
            runs = [partial(_scores, network, samples) for network in self.networks]
            if number == 0:
                in_turn(runs, 0, self.device)  # to warm up
            for turn in range(turns):
                seconds, found = in_turn(runs, number + turn, self.device)
                self.batches.append((len(samples), seconds[0], seconds[1]))
            for kept, new in zip(self.scores, found, strict=True):
                kept.extend(new)
            advance(len(samples))

    def result(self) -> dict[str, Any]:
        """Return the figures; speeds are over full batches, as a smaller last one takes more time for each video."""
        full = max(size for size, *_ in self.batches)
        timed = [batch for batch in self.batches if batch[0] == full]
        macs = [api.macs(network) for network in self.networks]
        plain_N, merged_N = (torch.stack(scores).argmax(-1) == self.truth_N for scores in self.scores)
        rows = []
        for number, name in enumerate(self.names):
            accuracy = Accuracy.of(torch.stack(self.scores[number]), self.truth_N)
            low, high = accuracy.interval
            rows.append(
                {
                    "model": name,
                    "compute": macs[number] / macs[0],
                    "gmacs": macs[number] / 1e9,
                    **asdict(accuracy),
                    "top1": accuracy.share,
                    "top1_interval": {"low": low, "high": high},
                    "clips_per_s": quantiles([full / batch[1 + number] for batch in timed]),
                }
            )
        return {
            "rows": rows,
            "speedup": quantiles([plain / merged for _, plain, merged in timed]),
            "ideal_speedup": macs[0] / macs[1],
            "only_right": {"plain": int((plain_N & ~merged_N).sum()), "merged": int((merged_N & ~plain_N).sum())},
            "batches_timed": len(timed),
            "reading_ms": 1000 * self.reading_seconds / len(self.truth_N),
            "clips": len(self.truth_N),
            "machine": machine(self.device),
        }


def _scores(network: nn.Module, samples: list[Sample]) -> list[Tensor]:
    """Return the class probabilities [K] of each video."""
    scores = []
    for result in classify(network, samples, batch_size=len(samples)):
        if result.scores_K is None:
            raise SttmError(f"{result.sample.path}: {result.error}")
        scores.append(result.scores_K)
    return scores
