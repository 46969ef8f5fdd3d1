"""Training: from a config to a model folder, resumable to the bit, on one process or many.

No random state is carried from step to step: clips are drawn from (seed, position in the stream), the model's own
noise from (seed, step, process). So a checkpoint is weights and optimizer state, and a run that was killed ends as if
it had not been.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sttm.config import Settings, dump, parse_views
from sttm.data.datasets.video_set import VideoSet, read_split
from sttm.data.loader import Batch, training_batches
from sttm.devices import device_of, machine
from sttm.distributed import settle
from sttm.errors import SttmError
from sttm.evaluation.evaluate import evaluate
from sttm.evaluation.inference import reading_threads
from sttm.evaluation.report import Evaluation, make_folder
from sttm.lock import locked
from sttm.training import checkpoints, checks
from sttm.training.checkpoints import Progress
from sttm.training.learner import Learner
from sttm.training.signals import Meter, Stopped, listen

__all__ = ["Stopped", "train"]

#: Seconds that one of several processes waits for a batch after a signal.
GRACE = 30.0

Report = Callable[[dict[str, Any]], None]


def train(settings: Settings, report: Report = lambda record: None) -> dict[str, Any]:
    """Train a model, or continue from the last checkpoint in the run's folder.

    Args:
        settings: see `sttm.config`; the run's folder, `settings.run.output`, gets config.yaml, lists/, checkpoints/,
            log.jsonl, the trackers' files, model/ (the last weights, or their average), results.json, and best/ (the
            best on validation, if there is such a split).
        report: called with a record at the start, every `run.log_every` steps, after each evaluation and at the end.

    Returns:
        The content of results.json: steps, seconds, multiply-adds, accuracy on the validation and test split.

    Raises:
        SttmError: for data, a model or settings that are not valid, a loss that is not finite, a folder that cannot be
            written, settings other than those that the folder's run began with.
        Stopped: when a signal asked for it; a checkpoint is saved.
    """
    accelerator = _accelerator(settings)
    try:
        with locked(settings.run.output) if accelerator.is_main_process else nullcontext():
            run = _Run(settings, report, accelerator)
            with listen(run.signals):
                run.remaining_steps()
                return run.finish()
    finally:
        settle()
        accelerator.end_training()


class _Run:
    """One process's share of a run."""

    def __init__(self, settings: Settings, report: Report, accelerator: Any) -> None:
        self.settings, self.folder = settings, settings.run.output
        self.accelerator = accelerator
        self.main, self.world = self.accelerator.is_main_process, self.accelerator.num_processes
        self.report: Report = report if self.main else lambda record: None
        self.signals: list[int] = []  # those received by this process
        self.videos = read_split(settings.data, "train")
        self.validation, self.test = self._labelled("validation"), self._labelled("test")
        self.workers = reading_threads() if settings.data.workers is None else settings.data.workers
        self.micro_batch = checks.micro_batch(settings, self.world)
        self.steps, self.evaluate_every = checks.lengths(settings, len(self.videos.videos))
        splits = {"train": self.videos, "validation": self.validation, "test": self.test}
        lists = {name: videos for name, videos in splits.items() if videos is not None}
        self.fingerprints = {name: checks.fingerprint(videos) for name, videos in lists.items()}
        found = checkpoints.latest(self.folder / "checkpoints")
        if found is not None:
            checks.check_same_run(settings, found[1]["settings"], self.folder)
            checks.check_same_classes(self.videos.classes, found[1]["classes"], self.folder)
            checks.check_same_data(lists, found[1]["data"], self.folder)
        self.learner = Learner(settings, self.accelerator, self.videos.classes)
        self.training, self.progress = self.learner.training, Progress()
        if found is not None:
            checkpoints.restore(self.training, found[0])
            self.progress = Progress.of(found[1])
        if self.main:
            (self.folder / "config.yaml").write_text(dump(settings), encoding="utf-8")
            if found is None:
                checks.write_lists(lists, self.folder)
        self._report_start(found)

    def _labelled(self, name: Literal["validation", "test"]) -> VideoSet | None:
        """Return the videos of a split, or None if the config has no such split or the videos have no labels."""
        if getattr(self.settings.data, name) is None:
            return None
        videos = read_split(self.settings.data, name)
        return videos if any(video.label is not None for video in videos.videos) else None

    def remaining_steps(self) -> None:
        """Run all steps from the last one of the checkpoint to the end."""
        settings, progress = self.settings, self.progress
        stream = training_batches(
            self.videos, self.training.preprocess, settings, first_step=progress.step, last_step=self.steps,
            rank=self.accelerator.process_index, world=self.world, micro_batch=self.micro_batch, workers=self.workers,
            waiting=self._stop_waiting,
        )  # fmt: skip
        began, before = time.perf_counter(), progress.seconds
        meter = Meter(settings.run.log_every)
        if progress.evaluated < progress.step:  # stopped during that evaluation
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
        """Evaluate, write the models and results.json, and return its content."""
        from accelerate.utils import gather_object

        training, progress = self.training, self.progress
        progress.unreadable = dict(gather_object(list(progress.unreadable.items())))
        with self.training.averaged():
            weights = checkpoints.gathered_weights(training)
            figures: dict[str, Any] = {"steps": progress.step, "seconds": round(progress.seconds, 1)}
            for name, videos in (("validation", self.validation), ("test", self.test)):
                if videos is not None:
                    figures[name] = self._evaluate(videos).summary()
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
            checkpoints.save_model(training, self.folder / "model", weights)
            (self.folder / "results.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            if progress.best is not None:
                checkpoints.copy_model(self.folder / "checkpoints" / progress.best, self.folder / "best")
        self.report({"event": "end", "folder": str(self.folder), **figures})
        return figures

    def _learn(self, micro_batches: list[Batch]) -> tuple[float, float, float]:
        """Take one step; return its loss, gradient norm and learning rate."""
        from accelerate.utils import gather_object

        progress = self.progress
        for batch in micro_batches:
            progress.unreadable |= dict(batch.errors)
        loss, norm = self.learner.backward(micro_batches, progress.step)
        if not (math.isfinite(loss) and math.isfinite(norm)):  # before it reaches the weights
            files = gather_object([name for batch in micro_batches for name in batch.files])
            good = checkpoints.latest(self.folder / "checkpoints")
            raise checks.not_finite(loss, progress.step + 1, files, good[0] if good else None)
        checks.check_readable(progress.unreadable, len(self.videos.videos), self.settings.data.max_missing)
        return loss, norm, self.learner.step(progress.step, self.steps)

    def _after_step(self) -> None:
        """Evaluate, save and stop where this step calls for it."""
        progress = self.progress
        try:
            better = self._validate()
            stop = self._stop_signal()
        except Stopped as stopped:  # during an evaluation, with which the continuation begins
            if stopped.checkpoint is None:
                raise
            better, stop = False, stopped.signal
        ended = progress.step == self.steps and progress.evaluated == progress.step
        if ended or better or stop or progress.step % self.settings.run.save_every == 0:
            self._save()
        if stop and not ended:
            raise Stopped(stop, progress.step, self._checkpoint())

    def _validate(self) -> bool:
        """Evaluate on the validation split if it is due; return whether the model is the best so far."""
        progress, better = self.progress, False
        due = progress.step == self.steps or progress.step % self.evaluate_every == 0
        if self.validation is not None and due:
            with self.training.averaged():
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
        """Return the signal that any of the processes received, 0 for none."""
        own = torch.tensor(max(self.signals, default=0), device=self.accelerator.device)
        return int(self.accelerator.gather(own[None]).max())

    def _save(self) -> None:
        run = {"settings": self.settings.model_dump(mode="json"), "classes": self.videos.classes}
        run["data"] = self.fingerprints
        checkpoints.save(self.training, self._checkpoint(), {**vars(self.progress), **run}, self.main)
        if self.main:
            checkpoints.prune(
                self.folder / "checkpoints", self.settings.run.keep, self.progress.best, self._checkpoint().name
            )
        self.accelerator.wait_for_everyone()

    def _evaluate(self, videos: VideoSet) -> Evaluation:
        settings, model = self.settings.evaluation, self.training.model
        model.eval()
        try:
            return evaluate(
                model, videos, self.training.preprocess, views=parse_views(settings.views), average=settings.average,
                batch_size=settings.batch_size, dtype=self.learner.dtype, workers=max(1, self.workers),
                rank=self.accelerator.process_index, world=self.world, advance=self._stop_if_asked,
                waiting=partial(self._stop_waiting, save=False),
            )  # fmt: skip
        finally:
            model.train()

    def _stop_if_asked(self, videos: int) -> None:
        """Stop an evaluation if a signal was received."""
        if stop := self._stop_signal():
            raise Stopped(stop, self.progress.step, self._checkpoint())

    def _stop_waiting(self, seconds: float, *, save: bool = True) -> None:
        """Stop while a batch is waited for, if a signal was received: between two steps all that is learned is whole.

        Of several processes none can save alone, so they wait for the end of the step; but not for ever. In an
        evaluation, where the weights may be averaged ones, nothing is saved until it is left.
        """
        if not self.signals or (self.world > 1 and seconds < GRACE):
            return
        if self.world == 1 and save:
            self._save()
        raise Stopped(self.signals[0], self.progress.step, self._checkpoint() if self.world == 1 else None)

    def _log(self, record: dict[str, Any]) -> None:
        self.report(record)
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "steps")}
        self.accelerator.log(numbers, step=record["step"])
        if self.main:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _report_start(self, found: checkpoints.Found | None) -> None:
        self.report(
            {
                "event": "start",
                "folder": str(self.folder),
                "resumed_at": None if found is None else self.progress.step,
                "damaged": [] if found is None else list(found.damaged),
                "initialised": list(self.learner.initialised),
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
    """Return accelerate's view of processes and device, once all that can be checked before reading data is."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise SttmError("sttm train needs sttm[train]; run pip install 'sttm[train]'") from error
    device_of(settings.run.device)
    checks.check_trackers(settings.run.trackers)
    make_folder(settings.run.output, "run.output")
    trackers = list(settings.run.trackers) or None
    accelerator = Accelerator(cpu=settings.run.device == "cpu", log_with=trackers, project_dir=settings.run.output)
    accelerator.init_trackers("tracking")
    return accelerator
