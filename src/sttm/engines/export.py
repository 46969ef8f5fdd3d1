"""A model as a file that other programs run: written, compared with the model on clips, and only then kept.

Legend: B clips, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sttm import models
from sttm.data.video.read import read
from sttm.engines import openvino_graph
from sttm.engines.engine import ENGINES, check_engine, make_engine, open_file
from sttm.engines.graph import OPSET, metadata, pixels_shape, to_onnx
from sttm.errors import SttmError, unknown
from sttm.patching import api

if TYPE_CHECKING:
    from sttm.data.transforms.preprocess import Preprocess

#: The engine that runs files of each suffix.
SUFFIXES = {".onnx": "onnx", ".xml": "openvino"}
#: How far a logit may be from the model's, in standard deviations of the clip's logits. In fp32 the largest distance of
#: all clips counts; in fewer bits the median, as some tokens then go to another slot in a few clips.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.15, "int8": 0.3}
#: Random clips that a model without preprocessing is compared on.
RANDOM_CLIPS = 3


@dataclass(frozen=True)
class Exported:
    """What was written, and how it agreed with the model."""

    path: str
    opset: int
    dtype: str
    mib: float
    """Size of the file, or of both files of OpenVINO, in MiB."""
    clips: int
    """Clips on which it was compared."""
    distance: float
    """How far its logits are from the model's, in their standard deviations; see `TOLERANCE`."""
    tolerance: float


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    *,
    preprocess: Preprocess | None = None,
    dtype: str = "fp32",
    clips: Tensor | None = None,
    force: bool = False,
) -> Exported:
    """Write a model, plain or merged, as a file for ONNX Runtime (.onnx) or OpenVINO (.xml, and .bin beside it).

    The file takes pixels [B, T, C, H, W] for any B and returns logits [B, K]; labels and preprocessing are in its
    metadata. It is kept only if its logits and its best class on each clip are the model's, within `TOLERANCE`.

        sttm.export("sttm-motion", "motion.onnx")

    Args:
        model: a model, or what `sttm.load` takes, whose preprocessing is then read too.
        preprocess: what the metadata says of preprocessing; left out, nothing.
        dtype: "fp32"; "int8"; or "bf16" for OpenVINO.
        clips: pixels of clips to compare on; left out, the bundled example videos, or random numbers where there is no
            preprocessing.
        force: replaces a file that exists.

    Raises:
        SttmError: for another suffix, a file that exists, a package that is not installed, or a file that does not
            agree with the model; nothing is then written.
    """
    path = Path(path)
    check_target(path, dtype, force=force)
    if not isinstance(model, nn.Module):
        model, preprocess = models.load_with_preprocess(model)
    inner = api.unwrap(model)
    if clips is None:
        clips = _examples(inner, preprocess)
    try:
        with TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            said = metadata(inner, preprocess)
            if path.suffix == ".onnx":
                to_onnx(inner, part, said, dtype)
            else:
                openvino_graph.save(openvino_graph.make_graph(inner, dtype, said), part)
            distance = compare(open_file(part, inner, dtype), make_engine("eager", inner), clips, dtype)
            written = sorted(Path(folder).iterdir())
            mib = sum(file.stat().st_size for file in written) / 2**20
            for file in written:  # the weights before the graph that names them
                file.replace(path.with_name(file.name))
    except OSError as error:
        raise SttmError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    return Exported(str(path), OPSET, dtype, round(mib, 1), len(clips), distance, TOLERANCE[dtype])


def compare(engine: nn.Module, model: nn.Module, clips: Tensor, dtype: str) -> float:
    """Return how far the logits of an engine are from those of the model in fp32; see `TOLERANCE`.

    Raises:
        SttmError: if that is too far; or if a class that is clearly ahead is no longer, in fewer bits on most clips.
    """
    # Batches of two, and one at the end: any number of clips has to go.
    found_BK, wanted_BK = (
        torch.cat([each(batch).logits.float().cpu() for batch in clips.split(2)]) for each in (engine, model)
    )
    distance_B = (found_BK - wanted_BK).abs().amax(-1) / wanted_BK.std(-1)
    distance = float(distance_B.max() if dtype == "fp32" else distance_B.median())
    two_B2 = wanted_BK.topk(min(2, wanted_BK.shape[-1]), dim=-1).values
    clear_B = (two_B2[:, 0] - two_B2[:, -1]) / wanted_BK.std(-1) > 2 * TOLERANCE[dtype]
    changed = int(((found_BK.argmax(-1) != wanted_BK.argmax(-1)) & clear_B).sum())
    allowed = 0 if dtype == "fp32" else len(clips) // 2
    if not distance <= TOLERANCE[dtype] or changed > allowed:  # a distance that is no number is too far as well
        raise SttmError(
            f"the {dtype} file disagrees with the model on {len(clips)} clips: logits are off by {distance:.2g} of "
            f"their deviation (at most {TOLERANCE[dtype]:g}), {changed} classes changed; nothing was written, try "
            "another dtype"
        )
    return distance


def check_target(path: Path, dtype: str, *, force: bool) -> None:
    """Refuse a target before anything is loaded."""
    if path.suffix not in SUFFIXES:
        raise unknown("suffix of a file to export to", path.suffix or path.name, SUFFIXES)
    engine = SUFFIXES[path.suffix]
    if dtype not in ENGINES[engine]:
        raise unknown(f"dtype of {path.suffix} files", dtype, ENGINES[engine])
    check_engine(engine, dtype, torch.device("cpu"))
    if path.is_dir():
        raise SttmError(f"{path} is a folder; give the name of a file in it")
    files = [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]
    if not force and (there := [file for file in files if file.exists()]):
        raise SttmError(f"{there[0]} exists; give another name, or --force (force=True in Python) to replace it")
    if not path.parent.is_dir():
        raise SttmError(f"there is no folder {path.parent}; make it first, or choose another")


def _examples(model: Any, preprocess: Preprocess | None) -> Tensor:
    """Return the pixels of the bundled example videos; random ones where there is no preprocessing."""
    if preprocess is None:
        return torch.randn(pixels_shape(model, RANDOM_CLIPS), generator=torch.Generator().manual_seed(1))
    return torch.cat([clip_pixels(path, preprocess) for path in sorted(models.EXAMPLES.glob("*.mp4"))])


def clip_pixels(path: str | Path, preprocess: Preprocess) -> Tensor:
    """Return the pixels [1, T, C, H, W] of the first view of a video file."""
    return preprocess(read(path, preprocess.sampling)[0].frames_TCHW)
