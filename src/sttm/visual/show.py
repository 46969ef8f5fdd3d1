"""What a model merges in one clip, and what it answers with and without merging: a picture, a video or a page.

Legend: T frames, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sttm import models
from sttm.backbones import backbone_of
from sttm.data.loader import Sample, read_ahead
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.video import Video
from sttm.devices import device_of
from sttm.errors import SttmError, unknown
from sttm.evaluation.inference import labels_of, scores
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.synth.videos import encode
from sttm.visual.pages import explorer
from sttm.visual.pictures import Drawing, merge_picture, merge_video, restore

#: How each kind of file is written, by its suffix.
SUFFIXES = (".png", ".mp4", ".gif", ".html")
#: Spent where a plain model is shown and no compute was given: what `sttm.apply` spends then.
COMPUTE = 0.62
#: Frames a second of a gif and of an mp4; the latter has each frame twice.
FPS = 4
#: Classes that are named.
TOP = 3


@dataclass(frozen=True)
class Shown:
    """One clip, classified with and without merging, and what merged in it."""

    name: str
    """Of the clip, without its folder."""
    drawing: Drawing
    plan: Plan
    labels: list[str]
    """The class names, by number."""
    plain_K: Tensor
    """Class probabilities without merging."""
    merged_K: Tensor
    """And with it."""
    twin: str = "the same weights"
    """What the model without merging is."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the file."""

    @property
    def header(self) -> list[str]:
        """Return the lines above a picture: the clip, what was spent, both answers."""
        plan = self.plan
        spent = (
            f"{plan.compute:.0%} of the multiply-adds ({plan.macs_after / 1e9:.3g} of {plan.macs_before / 1e9:.3g} G)"
        )
        return [
            f"{self.name}: {plan.method}{' (learned)' if plan.learned else ''} on {plan.family}, {spent}",
            f"With merging: {self.answer(self.merged_K)}",
            f"Without ({self.twin}): {self.answer(self.plain_K)}",
        ]

    def best(self, scores_K: Tensor, top: int = TOP) -> list[tuple[str, float]]:
        """Return the classes with the highest scores, and their scores."""
        values, numbers = scores_K.topk(min(top, len(scores_K)))
        return [(self.labels[number], value) for value, number in zip(values.tolist(), numbers.tolist(), strict=True)]

    def answer(self, scores_K: Tensor) -> str:
        """Return the classes with the highest scores as text."""
        return ", ".join(f"{label} {score:.0%}" for label, score in self.best(scores_K))

    def record(self) -> dict[str, Any]:
        """Return what was found as JSON can hold it."""
        answers = {
            name: [{"label": label, "score": score} for label, score in self.best(scores_K, 5)]
            for name, scores_K in (("merged", self.merged_K), ("plain", self.plain_K))
        }
        tokens = [stage.slots for stage in self.drawing.stages]
        return {"compute": self.plan.compute, "tokens": [self.drawing.stages[0].slot_THW.size, *tokens], **answers}


def show(
    clip: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: str | Path | None = None,
    compute: float | None = None,
    *,
    method: str = "sttm",
    device: str = "auto",
) -> dict[str, Any]:
    """Draw which tokens of a clip merge, into a .png, .gif, .mp4 or .html file.

        sttm.show("clip.mp4", "clip.png", model="sttm-words")

    Every merger is a row (a panel, in a video; a layer, in the page): the frames as the model saw them, tokens that
    became one outlined and in one colour. The page needs no other file and no network.

    Args:
        clip: a video file.
        out: the file to write, whole or not at all; its suffix says what is drawn.
        model: a bundled name, a folder, or a hub id; left out, the bundled model.
        compute: share of the multiply-adds to spend; left out, what the model was saved with, or 0.62 for a plain one.
        method: how to merge where `compute` asks for other mergers than the model has.
        device: "auto", "cpu" or "cuda".

    Returns:
        {"path", "output", "compute", "tokens": at first and after each merger, "merged" and "plain": the answers}.

    Raises:
        SttmError: for another suffix, a clip that cannot be read, a model that merges nothing, a folder that cannot be
            written.
    """
    path = checked(out)
    network, preprocess = models.load_with_preprocess(models.DEFAULT if model is None else model)
    network = network.to(device_of(device))
    if compute is None and not api.is_merged(network):
        compute = COMPUTE
    models.bring_to_compute(network, compute, method)
    shown = look(read_clip(clip, preprocess), network, preprocess, models.plain_twin(network, model or models.DEFAULT))
    write(shown, path)
    return {"path": os.fspath(clip), "output": str(path), **shown.record()}


def read_clip(clip: str | os.PathLike[str] | Video, preprocess: Preprocess) -> Sample:
    """Read one view of a video; raise SttmError if it cannot be read."""
    video = clip if isinstance(clip, Video) else Video(os.fspath(clip))
    with closing(read_ahead([video], preprocess, (1, 1), 1)) as samples:
        sample = next(samples)
    if sample.pixels_VTCHW is None:
        error = sample.error or "it was not read"
        raise SttmError(error if sample.path in error else f"{sample.path}: {error}")
    return sample


def look(sample: Sample, merged: nn.Module, preprocess: Preprocess, twin: tuple[nn.Module, str]) -> Shown:
    """Classify a clip with and without merging, and keep what merged.

    Args:
        merged: a merged model, in eval mode and on its device.
        twin: the model without merging, and what it is; see `models.plain_twin`.
    """
    assert sample.pixels_VTCHW is not None
    with api.trace(merged) as maps:
        (merged_K,) = scores(merged, [sample.pixels_VTCHW], "probabilities", 1, torch.float32)
    (plain_K,) = scores(twin[0], [sample.pixels_VTCHW], "probabilities", 1, torch.float32)
    plan = api.plan_of(merged)
    places = [f"{'inside' if merger.inside else 'before'} block {merger.layer}" for merger in plan.mergers]
    grid = backbone_of(merged).grid(merged, plan.clip_shape)
    drawing = Drawing(restore(sample.pixels_VTCHW[0], preprocess), list(maps), grid, places)
    assert drawing.stages
    return Shown(Path(sample.path).name, drawing, plan, labels_of(merged), plain_K, merged_K, twin[1], sample.warnings)


def checked(out: str | os.PathLike[str]) -> Path:
    """Return the file to write; raise SttmError for another suffix, or a folder that cannot be written."""
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise unknown("suffix of --out", path.suffix or path.name, SUFFIXES)
    if not path.parent.is_dir():
        raise SttmError(f"cannot write --out={path}: there is no folder {path.parent}; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SttmError(f"cannot write --out={path}; name a file in a folder that can be written")
    return path


def write(shown: Shown, path: Path) -> None:
    """Write what the suffix of a file asks for; the file appears only when it is complete."""
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        match path.suffix.lower():
            case ".png":
                merge_picture(shown.drawing, shown.header).save(part, optimize=True)
            case ".html":
                part.write_text(explorer.page(shown.drawing, shown.header), encoding="utf-8")
            case ".gif":
                _save_gif(merge_video(shown.drawing, shown.header), part)
            case _:
                sheets = [np.asarray(sheet) for sheet in merge_video(shown.drawing, shown.header) for _ in range(2)]
                encode(np.stack(sheets), part)
        part.replace(path)
    except OSError as error:
        raise SttmError(f"cannot write --out={path}: {error.strerror or error}; choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def _save_gif(sheets: Sequence[Image.Image], path: Path) -> None:
    first, *others = [sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for sheet in sheets]
    first.save(path, save_all=True, append_images=others, duration=1000 // FPS, loop=0)
