"""Judge cases: each in a process of its own, with limits of time and memory, by the product's own functions.

A case is answered, or refused in one sentence. Anything else is a fault: another exception, a sentence that is none, a
crash, a hang, memory beyond the limit, a file half written, or an answer that is silently wrong: a score that is none,
a path outside of the root, a damaged checkpoint that passes for a whole one, a class taken for another.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sttm import models
from sttm.config import load as load_config
from sttm.config.sections import DataSettings, SplitSettings
from sttm.corpus import inputs
from sttm.data.datasets.video_set import read_split
from sttm.errors import SttmError
from sttm.evaluation.evaluate import match_classes
from sttm.evaluation.inference import labels_of, scores
from sttm.evaluation.predict import find_videos, predict_files
from sttm.training import checkpoints
from tests.fuzz import commands
from tests.fuzz.cases import Case

#: Seconds of processor, seconds by the clock, and bytes above what the process has, that one case may take.
CPU, WALL, MEMORY = 30, 240, 3 * 2**30
#: What may become of a case; all but the first two are faults.
OUTCOMES = ("answered", "refused", "crash", "hang", "memory", "exception", "sentence", "rows", "wrong")
#: Characters that a sentence may have, twice what two quotations of 300 need.
LONGEST = 2000


@dataclass(frozen=True)
class Verdict:
    """What became of a case: "answered", "refused" or a fault, and what was said."""

    outcome: str
    said: str = ""

    @property
    def is_fault(self) -> bool:
        return self.outcome not in OUTCOMES[:2]


class Judge:
    """Judges cases in forks of this process, which has all that they need loaded already."""

    def __init__(self, seeds: Path) -> None:
        self.model, self.preprocess = models.load_with_preprocess(seeds / "plain")
        step = seeds / "run" / "checkpoints" / "step-00000004"
        self.checkpoint = {file.name: file.read_bytes() for file in step.iterdir()}
        fixed = torch.Generator().manual_seed(0)
        self.noise = torch.randint(0, 256, (8, 3, 48, 64), generator=fixed, dtype=torch.uint8)
        self.entries: dict[str, Callable[[str], Verdict]] = {
            "clip": self._clip,
            "odd clip": self._clip,
            "list": self._list,
            "parquet": self._corpus,
            "config": self._config,
            "model": self._model,
            "merged": self._model,
            "checkpoint": self._checkpoint,
            "shard": self._shard,
            "numbers": self._numbers,
            "command": self._command,
        }

    def judge(self, case: Case) -> Verdict:
        """Return what becomes of a case."""
        ours, theirs = Pipe(duplex=False)
        child = os.fork()
        if not child:
            try:
                ours.close()
                self._in_child(case, theirs)
            finally:
                os._exit(0)
        theirs.close()
        try:
            answer = ours.recv_bytes() if ours.poll(WALL + 30) else None
        except EOFError:
            answer = b""
        if answer is None:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ours.close()
        if answer:
            return pickle.loads(answer)
        if answer is None or -code in (signal.SIGALRM, signal.SIGXCPU):
            return Verdict("hang", f"no end after {CPU} s of processor or {WALL} s")
        return Verdict("crash", f"ended with {code}")

    def _in_child(self, case: Case, pipe: Connection[Any, Any]) -> None:
        faulthandler.disable()  # pytest's would print a crash, which the parent reports
        with Path("/proc/self/statm").open() as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU, used + CPU + 5))
        for number in (signal.SIGALRM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(WALL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.send_bytes(pickle.dumps(self._judged(case)))

    def _judged(self, case: Case) -> Verdict:
        try:
            verdict = self.entries[case.kind](case.path)
        except SttmError as error:
            verdict = Verdict("refused", str(error))
        except OSError as error:  # the command line says the name and the reason
            verdict = Verdict("refused", f"{error.filename}: {error.strerror}")
        except MemoryError:
            return Verdict("memory", _place(sys.exc_info()[1]))
        except BaseException as error:
            return Verdict("exception", f"{type(error).__name__}: {str(error)[:300]} at {_place(error)}")
        return verdict if verdict.outcome != "refused" else _checked(verdict, case)

    # --- what is called ----------------------------------------------------------------------------------------

    def _clip(self, path: str) -> Verdict:
        return self._records(find_videos([path], note=lambda sentence: None))

    def _records(self, videos: list[Any]) -> Verdict:
        said = []
        records = list(predict_files(videos, self.model, self.preprocess))
        if len(records) != len(videos):
            return Verdict("rows", f"{len(records)} records of {len(videos)} videos")
        for record in records:
            if "error" in record:
                said.append(record["error"])
            elif not all(0 <= p["score"] <= 1 for p in record["predictions"]):
                return Verdict("wrong", f"{record}")
        return Verdict("refused", said[0]) if said else Verdict("answered")

    def _list(self, path: str) -> Verdict:
        if Path(path).name != "paths.txt":  # which only a corpus may be
            read_split(DataSettings(test=SplitSettings(list=Path(path))), "test", tolerant=True)
        return self._corpus(path)

    def _corpus(self, path: str) -> Verdict:
        found = inputs.find(Path(path), Path(path).parent)
        root = Path(path).parent.resolve()
        outside = [v.path for v in found if v.error is None and not Path(v.path).resolve().is_relative_to(root)]
        if outside:
            return Verdict("wrong", f"{outside[0]!r} is outside of the root")
        with TemporaryDirectory() as folder:
            inputs.write(found, Path(folder), 4)
        return Verdict("answered")

    def _config(self, path: str) -> Verdict:
        load_config(path)
        return Verdict("answered")

    def _model(self, path: str) -> Verdict:
        model, preprocess = models.load_with_preprocess(path)
        (scores_K,) = scores(model, [preprocess(self.noise)], "probabilities", 8, torch.float32)
        finite = bool(scores_K.isfinite().all())
        return Verdict("answered") if finite else Verdict("answered", "scores that are not finite")

    def _checkpoint(self, path: str) -> Verdict:
        found = checkpoints.latest(Path(path))
        if found is None:
            return Verdict("answered", "no checkpoint")
        models.load(found.path)
        for file in found.path.iterdir():
            whole = self.checkpoint.get(file.name)
            if file.name not in (checkpoints.PROGRESS, checkpoints.HASHES) and file.read_bytes() != whole:
                if checkpoints._hash(file) not in self._said_by_hashes(found.path):
                    return Verdict("wrong", f"{file.name} is damaged")
        return Verdict("answered")

    @staticmethod
    def _said_by_hashes(folder: Path) -> str:
        return (folder / checkpoints.HASHES).read_text(encoding="utf-8")

    def _numbers(self, path: str) -> Verdict:
        list_, named = Path(path), commands.names_file(Path(path))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            videos = read_split(DataSettings(test=SplitSettings(list=list_), labels=named), "test", tolerant=True)
        if any("counting from" in str(warning.message) for warning in warned):
            return Verdict("answered", "with a warning")
        own, classes = match_classes(videos, labels_of(self.model)), labels_of(self.model)
        truth = commands.truth(list_)
        for video in videos.videos:
            label, name = video.label, truth[Path(video.path).name]
            taken = None if label is None else classes[own[label]]
            if taken != name:
                return Verdict("wrong", f"{name!r} is scored as {taken!r}")
        return Verdict("answered")

    def _command(self, path: str) -> Verdict:
        return Verdict(*commands.run(Path(path)))

    def _shard(self, path: str) -> Verdict:
        return self._records(inputs.find(Path(path)))


def _checked(verdict: Verdict, case: Case) -> Verdict:
    """Return the verdict, or a fault where what was said is no sentence of ours."""
    said = verdict.said.replace(case.path, "PATH").replace(str(Path(case.path).parent), "FOLDER")
    if "failed unexpectedly" in said or "Traceback" in said:
        return Verdict("exception", said)
    if len(said) > LONGEST or not said or said.endswith("."):
        return Verdict("sentence", f"{len(said)} characters: {said[:200]}...{said[-50:]}")
    return Verdict("refused", said)


def _place(error: BaseException | None) -> str:
    """Return where in sttm an exception comes from."""
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "/sttm/" in frame.filename]
    last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{own[-1] if own else '?'} ({last})"
