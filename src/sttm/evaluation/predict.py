"""Video files in, labels out: decoding runs ahead of the model, and a file that fails stops no other."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sttm import models
from sttm.data.isolated import isolated
from sttm.data.loader import read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import VIDEO_SUFFIXES, Video, skipped_files
from sttm.devices import device_of
from sttm.engines.choice import check_choice, place
from sttm.evaluation.inference import Classified, classify, labels_of

#: Threads that decode; few decoded clips wait for the model, so a long list needs no more memory.
READERS = 2


# Over 40 lines: most are the options and what they mean.
def predict(
    paths: Iterable[str | PathLike[str]],
    model: str | Path | None = None,
    compute: float | None = None,
    *,
    method: str = "sttm",
    top_k: int = 5,
    views: tuple[int, int] = (1, 1),
    batch_size: int = 8,
    dtype: str = "fp32",
    engine: str = "eager",
    device: str = "auto",
    isolate: bool = False,
) -> Iterator[dict[str, Any]]:
    """Classify video files: load a model, bring it to `compute`, and yield one record for each file, in order.

        for record in sttm.predict(["clips/"], compute=0.62):
            print(record["path"], record.get("predictions"))

    The model is loaded at the call, the files are read while the records are taken. A record is what
    `sttm predict --json` prints; see `predict_files`.

    Args:
        paths: files, folders or glob patterns.
        model: a bundled name, a folder, or a hub id; left out, the bundled model, with a warning of what it knows.
        compute: share of the plain model's multiply-adds to spend; None keeps the model as it was saved.
        method: how to merge where `compute` asks for other mergers than the model has.
        top_k: labels of each record.
        views: temporal views and spatial crops of each video, over which the scores are averaged.
        batch_size: clips that go through the model at once; every view is a clip.
        dtype: "fp32", "bf16" or "int8", as far as the engine has it.
        engine: what runs the model: "eager", "compile", "onnx", "openvino", or "auto", which measures what is fastest.
        device: "auto", "cpu" or "cuda"; auto is CUDA where there is a CUDA device.
        isolate: read the files in processes of their own, within limits of time and memory; see `sttm.data.isolated`.

    Raises:
        SttmError: for a model, compute, dtype, engine or device that cannot be. A file that cannot be read is a record.
    """
    where = device_of(device)
    check_choice(engine, dtype, where)
    network, preprocess = models.load_with_preprocess(models.DEFAULT if model is None else model)
    notice = bundled_notice(labels_of(network)) if model is None else None
    if notice is not None:
        warnings.warn(notice, stacklevel=2)
    plan = models.bring_to_compute(network.to(where), compute, method)
    network = place(engine, network, dtype, batch=batch_size, note=warnings.warn)
    names = [paths] if isinstance(paths, str | PathLike) else paths
    files, spent = find_videos(fspath(name) for name in names), 1.0 if plan is None else plan.compute
    options: dict[str, Any] = {"top_k": top_k, "views": views, "batch_size": batch_size}
    options["isolate"] = isolate
    return predict_files(files, network, preprocess, compute=spent, notice=notice, **options)


def bundled_notice(labels: list[str]) -> str:
    """Return what to say where no model was named: which classes the bundled one knows, and how to name another."""
    return (
        f"no model was named, so this is {models.DEFAULT}, which knows synthetic videos of {len(labels)} motions only "
        f"({', '.join(labels)}) and gives any other video one of these; name a model of your classes with --model "
        "(model= in Python), such as MCG-NJU/videomae-base-finetuned-kinetics"
    )


def find_videos(inputs: Iterable[str], note: Callable[[str], None] = warnings.warn) -> list[Video]:
    """Return the files that some inputs stand for: files, all video files below folders, matches of patterns.

    Nothing is lost: an input without a file becomes a Video with an error that says why.

    Args:
        note: called with a sentence for each folder in which other files were skipped.
    """
    return [file for name in inputs for file in _expand(name, note)]


def predict_files(
    files: Iterable[Video],
    model: nn.Module,
    preprocess: Preprocess,
    *,
    top_k: int = 5,
    views: tuple[int, int] = (1, 1),
    batch_size: int = 8,
    compute: float = 1.0,
    dtype: torch.dtype = torch.float32,
    notice: str | None = None,
    isolate: bool = False,
) -> Iterator[dict[str, Any]]:
    """Classify every file, and yield one record for each, in order, as soon as its batch has run.

    A record is {"path", "predictions": [{"label", "score"}...], "compute", "frames_decoded", "seconds"}, with
    "warnings" where the file was not read in full, and "notice" where there is one; or {"path", "error"}. "seconds"
    is the time to read the clip plus its share of the model's time on the batch.

    Args:
        model, views, batch_size, dtype: as in `inference.classify`; the model has `config.id2label`.
        compute: what the model costs relative to its plain self; it is only reported.
        notice: what all predictions are to be read with, such as `bundled_notice`; it is only reported.
        isolate: read the files in processes of their own; see `sttm.data.isolated`.

    Raises:
        SttmError: if a batch does not fit into the device's memory, or the model does not take such clips.
    """
    labels = labels_of(model)
    with (
        isolated(READERS) if isolate else nullcontext() as read,
        closing(read_ahead(files, preprocess, views, READERS, read)) as samples,
    ):
        for result in classify(model, samples, views=views, batch_size=batch_size, dtype=dtype):
            record = record_of(result, labels, top_k, compute)
            yield record | {"notice": notice} if notice and "predictions" in record else record


def _expand(name: str, note: Callable[[str], None]) -> Iterator[Video]:
    """Yield the files that one input stands for, always at least one."""
    try:
        is_folder, exists = Path(name).is_dir(), Path(name).exists()
    except OSError as error:  # a name that is too long, say
        yield Video(name, error=f"cannot be looked up: {error.strerror}")
        return
    if is_folder:
        yield from _in_folder(Path(name), note)
    elif exists or not any(sign in name for sign in "*?["):
        yield Video(name)  # if it is not there, the reader says so
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            yield Video(name, error="this pattern matches no file; check the folder and the quotes around it")
        for match in map(Path, matches):
            yield from _in_folder(match, note) if match.is_dir() else [Video(str(match))]


def _in_folder(folder: Path, note: Callable[[str], None]) -> Iterator[Video]:
    """Yield every video file of a folder and the folders in it, known by suffix, in the order of their names."""
    inside = sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and not path.is_dir())
    found = [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if others := sorted(set(inside) - set(found)):
        note(skipped_files(str(folder), [str(path.relative_to(folder)) for path in others]))
    if not found:
        yield Video(str(folder), error="this folder holds no video file; name one that does, or the files themselves")
    yield from (Video(str(path)) for path in found)


def record_of(result: Classified, labels: list[str], top_k: int, compute: float) -> dict[str, Any]:
    """Return the record of one file."""
    sample = result.sample
    if result.scores_K is None:
        return {"path": sample.path, "error": result.error}
    best = result.scores_K.topk(min(top_k, len(labels)))
    scored = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    record: dict[str, Any] = {
        "path": sample.path,
        "predictions": [{"label": labels[index], "score": score} for score, index in scored],
        "compute": compute,
        "frames_decoded": sample.frames_decoded,
        "seconds": round(result.seconds, 6),
    }
    if sample.warnings:
        record["warnings"] = list(sample.warnings)
    return record
