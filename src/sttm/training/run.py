"""Training: from a config to a model folder, resumable to the bit, on one process or many.

Nothing random is remembered from step to step: clips are drawn from (seed, place in the stream), the model's own noise
from (seed, step, process). So a checkpoint is weights and optimizer state, and a run that was killed ends as if it had
not been.

Legend: B clips in a micro-batch, K classes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sttm.config import Settings, dump, parse_views
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.loader import Batch, training_batches
from sttm.devices import machine
from sttm.distributed import settle
from sttm.errors import SttmError
from sttm.evaluation.evaluate import Evaluation, evaluate
from sttm.evaluation.inference import reading_threads
from sttm.training import checkpoints, checks
from sttm.training.learner import Learner
from sttm.training.signals import Meter, Stopped, listen

__all__ = ["Stopped", "train"]

Report = Callable[[dict[str, Any]], None]


@dataclass
class _Progress:
    """Where a run is; what training.json says."""

    step: int = 0
    evaluated: int = 0
    """The last step after which validation was looked at, or had not to be."""
    best_top1: float = -1.0
    best: str | None = None
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)


def train(settings: Settings, report: Report = lambda record: None) -> dict[str, Any]:
    """Carries out a run, or goes on with it where its folder says it stopped.

    Args:
        settings: see `sttm.config`; the run's folder, `settings.run.output`, gets config.yaml, checkpoints/, log.jsonl,
            the trackers' files, model/ (the last weights, or their average), best/ (the best on validation, if there
            is a validation split) and results.json.
        report: gets a record every `run.log_every` steps, after each evaluation, and for what the user should know.

    Returns:
        What results.json says: steps, seconds, multiply-adds, accuracy on the validation and test split.

    Raises:
        SttmError: for data, a model or settings that cannot be, a loss that is not finite, a folder that cannot be
            written, other settings than those that the folder's run began with.
        Stopped: when a signal asked for it; everything is saved.
    """
    run = _Run(settings, report)
    try:
        with listen(run.told):
            run.to_the_end()
            return run.finish()
    finally:
        settle()
        run.accelerator.end_training()


class _Run:
    """One process's share of a run."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self.settings, self.folder = settings, settings.run.output
        self.accelerator = _accelerator(settings)
        self.main, self.world = self.accelerator.is_main_process, self.accelerator.num_processes
        self.report: Report = report if self.main else lambda record: None
        self.told: list[int] = []  # signals that came
        self.videos = read_split(settings.data, "train")
        self.validation, self.test = self._labelled("validation"), self._labelled("test")
        self.workers = reading_threads() if settings.data.workers is None else settings.data.workers
        self.micro_batch = checks.micro_batch(settings, self.world)
        self.steps, self.evaluate_every = checks.lengths(settings, len(self.videos.videos))
        found = checkpoints.latest(self.folder / "checkpoints")
        if found is not None:
            checks.same_run(settings, found[1]["settings"], self.folder)
            checks.same_classes(self.videos.classes, found[1]["classes"], self.folder)
        self.learner = Learner(settings, self.accelerator, self.videos.classes)
        self.training, self.progress = self.learner.training, _Progress()
        if found is not None:
            self._resume(*found)
        if self.main:
            (self.folder / "config.yaml").write_text(dump(settings), encoding="utf-8")
        self._tell_start(found is not None)

    def _labelled(self, name: Literal["validation", "test"]) -> VideoSet | None:
        """The videos of a split, if there are any and somebody says what they show."""
        if getattr(self.settings.data, name) is None:
            return None
        videos = read_split(self.settings.data, name)
        return videos if any(video.label is not None for video in videos.videos) else None

    def to_the_end(self) -> None:
        """Runs the steps that are left."""
        settings, progress = self.settings, self.progress
        stream = training_batches(
            self.videos, self.training.preprocess, settings, first_step=progress.step, last_step=self.steps,
            rank=self.accelerator.process_index, world=self.world, micro_batch=self.micro_batch, workers=self.workers,
        )  # fmt: skip
        began, before = time.perf_counter(), progress.seconds
        meter = Meter(settings.run.log_every)
        if progress.evaluated < progress.step:  # it was stopped on the way
            self._after_step()
        with closing(stream) as batches:
            for micro_batches in meter.waiting(batches):
                loss, norm, lr = self._learn(micro_batches)
                progress.step += 1
                progress.seconds = before + time.perf_counter() - began
                if record := meter.count(progress.step, self.steps, loss, norm, lr, settings.optimizer.batch_size):
                    self._log(record)
                self._after_step()

    def finish(self) -> dict[str, Any]:
        """Writes the models, evaluates, and lists what could not be read."""
        from accelerate.utils import gather_object

        training, progress = self.training, self.progress
        progress.unreadable = dict(gather_object(list(progress.unreadable.items())))
        with self.learner.averaged():
            weights = checkpoints.whole_weights(training)
            figures: dict[str, Any] = {"steps": progress.step, "seconds": round(progress.seconds, 1)}
            for name, videos in (("validation", self.validation), ("test", self.test)):
                if videos is not None:
                    figures[name] = self._evaluate(videos).summary()
        if self.main:
            checkpoints.save_model(training, self.folder / "model", weights)
            if progress.best is not None:
                checkpoints.copy_model(self.folder / "checkpoints" / progress.best, self.folder / "best")
        plan = self.learner.plan
        figures |= {
            "macs": self.learner.macs,
            "compute": 1.0 if plan is None else plan.compute,
            "method": "plain" if plan is None else plan.method,
            "seed": self.settings.run.seed,
            "clips": len(self.videos.videos),
            "missing": list(self.videos.missing),
            "unreadable": progress.unreadable,
            "machine": machine(self.accelerator.device),
        }
        if self.main:
            (self.folder / "results.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        self.report({"event": "end", "folder": str(self.folder), **figures})
        return figures

    # --- one step ---------------------------------------------------------------------------------------------

    def _learn(self, micro_batches: list[Batch]) -> tuple[float, float, float]:
        """One step: loss, norm of the gradient, rate."""
        for batch in micro_batches:
            self.progress.unreadable |= dict(batch.errors)
        loss, norm = self.learner.backward(micro_batches, self.progress.step)
        self._check(loss, norm, micro_batches)
        return loss, norm, self.learner.step(self.progress.step, self.steps)

    def _check(self, loss: float, norm: float, micro_batches: list[Batch]) -> None:
        """Stops before a step that would spoil the weights, and when too much of the list is unreadable."""
        from accelerate.utils import gather_object

        most, unreadable = self.settings.data.max_missing, self.progress.unreadable
        if not (math.isfinite(loss) and math.isfinite(norm)):
            files = gather_object([name for batch in micro_batches for name in batch.files])
            good = checkpoints.latest(self.folder / "checkpoints")
            what = "gradient" if math.isfinite(loss) else "loss"
            raise SttmError(
                f"the {what} is not finite at step {self.progress.step + 1}, on {', '.join(dict.fromkeys(files))}; "
                f"the last good checkpoint is {good[0] if good else 'none yet'}: look at these files, lower "
                "optimizer.lr or set optimizer.clip_norm, and run the command again"
            )
        if len(unreadable) > most * len(self.videos.videos):
            path, reason = next(iter(unreadable.items()))
            raise SttmError(
                f"{len(unreadable)} of {len(self.videos.videos)} training videos cannot be read, more than "
                f"data.max_missing={most:g} allows ({path}: {reason}); see sttm data check"
            )

    # --- between steps ------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        """Evaluates, saves and stops where it is time to."""
        progress = self.progress
        try:
            better = self._validate()
            stop = self._stop_signal()
        except Stopped as stopped:  # in the middle of an evaluation, which the continuation does first
            better, stop = False, stopped.signal
        ended = progress.step == self.steps and progress.evaluated == progress.step
        if ended or better or stop or progress.step % self.settings.run.save_every == 0:
            self._save()
        if stop and not ended:
            raise Stopped(stop, progress.step, self._checkpoint())

    def _validate(self) -> bool:
        """Looks at validation where it is time to; whether the model is the best so far."""
        progress, better = self.progress, False
        due = progress.step == self.steps or progress.step % self.evaluate_every == 0
        if self.validation is not None and due:
            with self.learner.averaged():
                top1 = self._evaluate(self.validation).top1.share
            better = top1 > progress.best_top1
            self._log({"event": "evaluation", "step": progress.step, "validation_top1": top1})
            if better:
                progress.best_top1, progress.best = top1, self._checkpoint().name
        progress.evaluated = progress.step
        return better

    def _checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"step-{self.progress.step:08d}"

    def _stop_signal(self) -> int:
        """The signal that any of the processes got, 0 for none."""
        mine = torch.tensor(max(self.told, default=0), device=self.accelerator.device)
        return int(self.accelerator.gather(mine[None]).max())

    def _save(self) -> None:
        folder = self.folder / "checkpoints"
        told = {"settings": self.settings.model_dump(mode="json"), "classes": self.videos.classes}
        progress = {**vars(self.progress), **told}
        checkpoints.save(self.training, self._checkpoint(), progress, self.main)
        if self.main:
            checkpoints.prune(folder, self.settings.run.keep, self.progress.best)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, videos: VideoSet) -> Evaluation:
        wanted, training = self.settings.evaluation, self.training.model
        training.eval()
        try:
            return evaluate(
                training, videos, self.training.preprocess, views=parse_views(wanted.views), average=wanted.average,
                batch_size=wanted.batch_size, dtype=self.learner.dtype, workers=max(1, self.workers),
                rank=self.accelerator.process_index, world=self.world, advance=self._heed,
            )  # fmt: skip
        finally:
            training.train()

    def _heed(self, videos: int) -> None:
        """Breaks an evaluation off when told to stop."""
        if stop := self._stop_signal():
            raise Stopped(stop, self.progress.step, self._checkpoint())

    def _log(self, record: dict[str, Any]) -> None:
        self.report(record)
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "steps")}
        self.accelerator.log(numbers, step=record["step"])
        if self.main:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _resume(self, folder: Path, progress: dict[str, Any]) -> None:
        checkpoints.restore(self.training, folder)
        known = vars(_Progress())
        self.progress = _Progress(**{key: value for key, value in progress.items() if key in known})

    def _tell_start(self, resumed: bool) -> None:
        self.report(
            {
                "event": "start",
                "folder": str(self.folder),
                "resumed_at": self.progress.step if resumed else None,
                "steps": self.steps,
                "clips": len(self.videos.videos),
                "classes": len(self.videos.classes),
                "missing": list(self.videos.missing),
                "macs": self.learner.macs,
                "plan": "plain" if self.learner.plan is None else str(self.learner.plan),
                "processes": self.world,
            }
        )


def _accelerator(settings: Settings) -> Any:
    """The processes and the device; everything is checked before any video is looked at."""
    try:
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
    except ImportError as error:
        raise SttmError("sttm train needs sttm[train]: pip install 'sttm[train]'") from error
    device = settings.run.device
    if device == "cuda" and not torch.cuda.is_available():
        raise SttmError("run.device=cuda, but torch sees no CUDA device: use run.device: cpu, or see sttm doctor")
    available = [tracker.value for tracker in get_available_trackers()]
    for name in settings.run.trackers:
        if name not in available:
            raise SttmError(
                f"run.trackers has {name}, which is unknown or not installed; there are {', '.join(available)}: "
                "install it, or set run.trackers: []"
            )
    checks.claim(settings.run.output)
    wanted = list(settings.run.trackers) or None
    accelerator = Accelerator(cpu=device == "cpu", log_with=wanted, project_dir=settings.run.output)
    accelerator.init_trackers("tracking")
    return accelerator
