"""What the page asks for: one video classified with and without merging, within limits, by models that stay loaded.

Nothing here knows the page; it raises SttmError with sentences that hold no path of the machine.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sttm import models
from sttm.benchmark.timing import in_turn
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.devices import device_of, machine
from sttm.errors import SttmError, unknown
from sttm.evaluation.inference import scores
from sttm.merging import METHODS, spec_of
from sttm.patching import api
from sttm.visual.show import COMPUTE, Shown, look, read_clip

#: Models that stay loaded; the one that was used longest ago goes first.
KEPT = 3
#: Forwards of either model that are timed, after one to warm up; the median is told.
TURNS = 3
#: The compute that can be asked for.
LEAST, MOST = 0.1, 0.95


@dataclass(frozen=True)
class Limits:
    """What a video may be, for it to be read."""

    megabytes: float = 100
    seconds: float = 120
    pixels: int = 3840 * 2160
    """Of one frame."""

    def check(self, path: Path) -> None:
        """Raise SttmError for a video beyond the limits, or one that cannot be read."""
        if not path.is_file():
            raise SttmError("this video is not here any more; choose it again")
        size = path.stat().st_size / 1e6
        if size > self.megabytes:
            self._refuse(f"of {size:,.1f} MB", f"{self.megabytes:g} MB")
        info = Video(str(path)).probe()
        if info.width * info.height > self.pixels:
            self._refuse(f"with frames of {info.width} x {info.height} pixels", f"{self.pixels:,} pixels")
        seconds = info.duration_seconds or (info.num_frames or 0) / (info.fps or 25)
        if seconds > self.seconds:
            self._refuse(f"of {seconds:,.0f} seconds", f"{self.seconds:g} seconds")

    @staticmethod
    def _refuse(given: str, allowed: str) -> None:
        raise SttmError(f"a video {given} is more than this page takes, which is {allowed}; cut it or scale it down")


@dataclass(frozen=True)
class Answer:
    """What was found for one video."""

    shown: Shown
    milliseconds: tuple[float, float]
    """Of a forward without merging and with it, the median of some."""
    machine: str
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return what the API answers."""
        plain, merged = self.milliseconds
        plan = self.shown.plan
        return {
            **self.shown.record(),
            "method": plan.method,
            "milliseconds": {"plain": round(plain, 2), "merged": round(merged, 2)},
            "speedup": round(plain / merged, 3),
            "plan": str(plan),
            "machine": self.machine,
            "notes": list(self.notes),
        }


@dataclass
class _Loaded:
    merged: nn.Module
    twin: tuple[nn.Module, str]
    preprocess: Preprocess
    notes: tuple[str, ...]


class Engine:
    """Classifies videos, one at a time, by the models that it was given.

    Args:
        names: bundled names, folders or hub ids of the models.
        limits: what a video may be.
        device: "auto", "cpu" or "cuda".

    Raises:
        SttmError: for a model that cannot be loaded, or no such device.
    """

    def __init__(self, names: Sequence[str], limits: Limits | None = None, device: str = "auto") -> None:
        self.limits, self.device = limits or Limits(), device_of(device)
        # A folder is known by its last part: its path is nobody's business.
        self.names = {name if name in models.BUNDLED else Path(name).name or name: name for name in names}
        if len(self.names) < len(names):
            raise SttmError("two of the models have the same name; rename one of the folders")
        self._loaded: OrderedDict[tuple[str, str, float], _Loaded] = OrderedDict()
        self._lock = threading.Lock()
        self.own: dict[str, float] = {}
        for name in self.names:
            network = self._network(name)[0]
            own = api.plan_of(network) if api.is_merged(network) else None
            self.own[name] = own.compute if own is not None and own.mergers else COMPUTE

    @property
    def methods(self) -> list[str]:
        """Return the methods that need no training, the merger first."""
        return [name for name in METHODS if spec_of(name).training != "required"]

    def classify(self, path: str | os.PathLike[str], model: str, method: str, compute: float) -> Answer:
        """Classify a video with and without merging, in turn; raise SttmError for anything that cannot be."""
        file = Path(path)
        try:
            with self._lock:
                self.limits.check(file)
                loaded = self._load(model, method, compute)
                return self._answer(file, loaded)
        except SttmError as error:
            raise SttmError(_without_paths(str(error), file)) from None

    def _answer(self, file: Path, loaded: _Loaded) -> Answer:
        sample = read_clip(file, loaded.preprocess)
        shown = look(sample, loaded.merged, loaded.preprocess, loaded.twin)  # it warms up both
        assert sample.pixels_VTCHW is not None
        pixels = [sample.pixels_VTCHW.to(self.device)]
        runs = [
            partial(scores, network, pixels, "probabilities", 1, torch.float32)
            for network in (loaded.twin[0], loaded.merged)
        ]
        seconds = [in_turn(runs, turn, self.device)[0] for turn in range(TURNS)]
        plain, merged = (1000 * sorted(column)[TURNS // 2] for column in zip(*seconds, strict=True))
        return Answer(shown, (plain, merged), machine(self.device), (*loaded.notes, *sample.warnings))

    def _load(self, name: str, method: str, compute: float) -> _Loaded:
        """Return the models that are asked for, loaded now or before."""
        if name not in self.names:
            raise unknown("model", name, self.names)
        if method not in self.methods:
            raise unknown("method", method, self.methods)
        if not isinstance(compute, int | float) or not LEAST <= compute <= MOST:
            raise SttmError(f"compute={compute} is not from {LEAST} to {MOST}; choose a share of the multiply-adds")
        key = (name, method, round(float(compute), 3))
        if key not in self._loaded:
            network, preprocess = self._network(name)
            own = models.bring_to_compute(network, None)
            plan = models.bring_to_compute(network, float(compute), method)
            notes: tuple[str, ...] = ()
            if own is not None and plan is not own:
                notes = (f"the mergers that {name} was trained with (compute {own.compute:.3f}) were replaced",)
            self._loaded[key] = _Loaded(network, models.plain_twin(network, name), preprocess, notes)
        self._loaded.move_to_end(key)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def _network(self, name: str) -> tuple[nn.Module, Preprocess]:
        network, preprocess = models.load_with_preprocess(self.names[name])
        return network.to(self.device), preprocess


def _without_paths(sentence: str, file: Path) -> str:
    """Return a sentence that names the uploaded file without its folders."""
    return sentence.replace(str(file), file.name).replace(f"{file.parent}{os.sep}", "")
