"""Adapt a merged model to its plain self on unlabelled videos: a run of the training engine, its config written here.

The plain model is the teacher, a distillation loss on the logits the only loss. Some videos are held out: on them the
answers are compared with those of the plain model, before and after.

Legend: N clips, K classes.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from sttm import models
from sttm.calibration.agreement import Agreement
from sttm.config import Settings, load
from sttm.data.datasets.labels import Classes
from sttm.data.datasets.unlabelled import find_unlabelled, spread
from sttm.data.loader import read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.devices import device_of, dtype_of
from sttm.errors import SttmError
from sttm.evaluation.inference import classify, labels_of, reading_threads
from sttm.evaluation.metrics import Accuracy
from sttm.evaluation.report import make_folder
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.training.run import train

#: Videos that are held out: one in so many, up to a number.
ONE_IN, MOST_HELD_OUT = 10, 200
#: Steps that are run to find out how many fit into the minutes; the first few are slower and do not count.
TRIAL_STEPS, TRIAL_SKIPPED = 8, 3
#: Steps of a run without --steps and --minutes.
STEPS = 300
#: Least probability that is compared: the smallest that float32 holds with full precision.
LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Distillation:
    """The options of `sttm distill`; None leaves a choice to the model, or to the defaults.

    Attributes:
        model: bundled name, folder or hub id, plain or merged.
        data: folder of videos, or an annotation list; labels are not read.
        out: folder for the merged model, and for the run (below run/), which continues there.
        compute, method, learned: what to merge a plain model by; a merged one keeps its mergers where they meet these.
        steps, minutes: length of the run, one of them.
        overrides: "a.b=v" each, for the config of the run.
    """

    model: str
    data: Path
    out: Path
    root: Path | None = None
    format: str = "auto"
    compute: float | None = None
    method: str | None = None
    learned: bool = True
    steps: int | None = None
    minutes: float | None = None
    lr: float = 1e-4
    batch_size: int = 16
    temperature: float = 1.0
    seed: int = 0
    overrides: Sequence[str] = ()


def distill(wanted: Distillation, report: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
    """Distil a model, or continue from the last checkpoint in its folder, and return what was reported at the end.

    Args:
        report: called with the records of `training.run.train`, and with {"event": "agreement"} before and after.

    Raises:
        SttmError: for data, a model or options that are not valid.
        Stopped: when a signal asked for it; a checkpoint is saved, from which the same call continues.
    """
    if wanted.steps is not None and wanted.minutes is not None:
        raise SttmError("steps and minutes both set the length of the run; give one of them")
    held_out, training = _split(find_unlabelled(wanted.data, wanted.root, wanted.format))
    plain, preprocess = models.load_with_preprocess(wanted.model)
    student = deepcopy(plain)
    plan = _merge(student, wanted)
    if api.is_merged(plain):
        api.remove(plain)
    make_folder(wanted.out, "--out")
    settings = _settings(wanted, plan, training)
    device = device_of(settings.run.device)
    compared = _Comparison(plain.to(device), preprocess, held_out, settings)
    before = compared.with_plain(student.to(device))
    report({"event": "agreement", "when": "before", **before})
    run = train(settings, report)
    folder = settings.run.output / "model"
    after = compared.with_plain(models.load(folder).to(device))
    report({"event": "agreement", "when": "after", **after})
    for path in folder.iterdir():
        shutil.copyfile(path, wanted.out / path.name)
    outcome = {"before": before, "after": after, **_won(before, after, run["seconds"] / 60)}
    outcome |= {key: run[key] for key in ("steps", "seconds", "compute", "method", "seed", "unreadable", "machine")}
    outcome |= {"clips": len(training), "held_out": len(held_out), "folder": str(wanted.out)}
    (wanted.out / "results.json").write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    report({"event": "distilled", **outcome})
    return outcome


def _split(videos: list[Video]) -> tuple[list[Video], list[Video]]:
    """Return the videos that are held out, spread over the list, and the others."""
    if len(videos) < 2:
        raise SttmError(f"the data has {len(videos)} video; give at least two, of which one is held out")
    if any(video.member is not None for video in videos):
        raise SttmError("sttm distill reads video files and folders of frames, not tar shards; unpack them")
    held_out = spread(videos, min(max(1, len(videos) // ONE_IN), MOST_HELD_OUT))
    names = {video.path for video in held_out}
    return held_out, [video for video in videos if video.path not in names]


def _merge(model: nn.Module, wanted: Distillation) -> Plan:
    """Merge a model as it was asked for, and return its plan; mergers that meet the compute stay."""
    own = api.plan_of(model) if api.is_merged(model) else None
    compute = wanted.compute
    if own is not None and own.mergers and wanted.method in (None, own.method):
        if compute is None or own.meets(compute, own.method):
            return own
    if compute is None or compute == 1:
        raise SttmError("there is nothing to distil without merging; give a compute below 1, such as 0.4")
    plan = models.bring_to_compute(model, compute, wanted.method or "sttm", learned=wanted.learned)
    assert plan is not None
    return plan


def _settings(wanted: Distillation, plan: Plan, training: list[Video]) -> Settings:
    """Write the list and the config of the run, and return its settings."""
    listed, run = wanted.out / "train.csv", wanted.out / "run"
    with listed.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows((str(Path(video.path).absolute()), "") for video in training)
    # A folder, as its config is read again when the run continues elsewhere; a name is left as it is.
    start = str(Path(wanted.model).absolute()) if Path(wanted.model).is_dir() else wanted.model
    values: dict[str, Any] = {
        "data": {"train": {"list": str(listed), "format": "csv"}, "unlabelled": True},
        "model": {"start": start},
        "merging": {"compute": plan.compute, "method": plan.method, "learned": plan.learned, "motion": plan.motion,
                    "motion_start": 0},
        "augment": {"crop_area": [0.7, 1.0]},
        "optimizer": {
            "lr": wanted.lr, "min_lr": wanted.lr / 100, "steps": wanted.steps or STEPS,
            "batch_size": wanted.batch_size, "clip_norm": 1.0,
        },
        "distillation": {"weight": 1.0, "temperature": wanted.temperature},
        "run": {"output": str(run), "seed": wanted.seed, "trackers": [], "save_every": 100},
    }  # fmt: skip
    if wanted.minutes is not None:
        values["optimizer"]["steps"] = _steps_of_before(run) or _steps_within(wanted, values)
    return _load(wanted.out / "distill.yaml", values, wanted.overrides)


def _load(path: Path, values: dict[str, Any], overrides: Sequence[str]) -> Settings:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load(path, overrides)


def _steps_of_before(run: Path) -> int | None:
    """Return the steps of the run that a folder holds, if any: its continuation has as many."""
    if not (run / "config.yaml").is_file():
        return None
    return load(run / "config.yaml").optimizer.steps


def _steps_within(wanted: Distillation, values: dict[str, Any]) -> int:
    """Return the steps that fit into the minutes, by the speed of the first steps of a run that is thrown away."""
    assert wanted.minutes is not None
    seconds: list[float] = []

    def count(record: dict[str, Any]) -> None:
        if "clips_per_s" in record and record["step"] > TRIAL_SKIPPED:
            seconds.append(wanted.batch_size / record["clips_per_s"])

    with tempfile.TemporaryDirectory() as folder:
        run = values["run"] | {"output": f"{folder}/run", "log_every": 1}
        trial = values | {"run": run, "optimizer": values["optimizer"] | {"steps": TRIAL_STEPS}}
        train(_load(Path(folder) / "distill.yaml", trial, wanted.overrides), count)
    return max(1, round(60 * wanted.minutes / statistics.median(seconds)))


class _Comparison:
    """The held-out videos, and what the plain model says of them."""

    def __init__(self, plain: nn.Module, preprocess: Preprocess, videos: list[Video], settings: Settings) -> None:
        self.preprocess, self.videos = preprocess, videos
        self.batch_size, self.dtype = settings.evaluation.batch_size, dtype_of(settings.run.precision)
        labels = Classes.of(labels_of(plain), "the model")
        # A folder of a class's name labels its videos.
        self.truth = [labels.index(Path(video.path).parent.name) for video in videos]
        self.plain = self._answers(plain)
        if all(answer is None for answer in self.plain):
            raise SttmError(f"none of the {len(videos)} held-out videos can be read; check the data")

    def with_plain(self, model: nn.Module) -> dict[str, Any]:
        """Return the agreement of a merged model with the plain one, and its top-1 where all videos have labels.

        Shares come with their 95 % interval: of a few videos they say little.
        """
        pairs = [(one, other) for one, other in zip(self.plain, self._answers(model), strict=True)]
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        plain_NK, merged_NK = (torch.stack(answers) for answers in zip(*both, strict=True))
        agreed = Accuracy.of(merged_NK, plain_NK.argmax(-1))
        figures = _share("agreement", agreed) | {"kl": Agreement.of(plain_NK, merged_NK).kl}
        if all(truth is not None for truth in self.truth):
            right = [
                int(answer.argmax()) == truth
                for (_, answer), truth in zip(pairs, self.truth, strict=True)
                if answer is not None
            ]
            figures |= _share("top1", Accuracy(sum(right), len(right)))
        return figures

    def _answers(self, model: nn.Module) -> list[Tensor | None]:
        """Return the logarithm of the class probabilities [K] of each video; None for one that cannot be read."""
        with closing(read_ahead(self.videos, self.preprocess, (1, 1), reading_threads())) as samples:
            found = classify(model.eval(), samples, batch_size=self.batch_size, dtype=self.dtype)
            return [None if one.scores_K is None else one.scores_K.clamp(min=LEAST).log() for one in found]


def _share(name: str, counted: Accuracy) -> dict[str, Any]:
    """Return a share of the videos and its 95 % interval, as they are reported."""
    return {name: counted.share, f"{name}_interval": list(counted.interval)}


def _won(before: dict[str, Any], after: dict[str, Any], minutes: float) -> dict[str, float]:
    """Return the points of agreement, and of top-1, that were won back in all and in a minute."""
    won: dict[str, float] = {}
    for name in ("agreement", "top1"):
        if name in before:
            points = 100 * (after[name] - before[name])
            won |= {f"{name}_points": points, f"{name}_points_per_minute": points / max(minutes, 1e-9)}
    return won
