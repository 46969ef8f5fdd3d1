"""Videos that are folders of pictures, as Jester and the frame lists of mmaction2 have them.

Legend: T frames of a clip, C = 3 colours (red, green, blue), H height, W width.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sttm.data.datasets.lists import PICTURE_SUFFIXES
from sttm.data.video.read import Clip, Sampling, VideoInfo, sample_indices
from sttm.errors import SttmError

FPS = 25  # pictures do not tell their rate; it only gives their timestamps a unit


def read_frames(
    folder: str, sampling: Sampling, *, skip: int = 0, count: int | None = None, draw: np.random.Generator | None = None
) -> list[Clip]:
    """Choose and decode pictures as `video.read` does frames: one Clip a temporal view.

    Args:
        skip: pictures before the video's first, where several videos share a folder.
        count: how many there are; all that follow if left out.

    Raises:
        SttmError: if the folder cannot be read, holds no picture, or one of the wanted ones is broken.
    """
    files = list_frames(folder)[skip:][:count]
    if not files:
        raise SttmError(f"{folder} ends before picture {skip + 1}; check its offset in the list, or extract it again.")
    notes = []
    if count is not None and len(files) < count:
        notes.append(f"the list announces {count} frames but the folder holds only {len(files)}")
    if len(files) < sampling.reach:
        number = f"{len(files)} frame{'s' * (len(files) != 1)}"
        notes.append(f"the video has {number} and the clip needs {sampling.reach}: the last is repeated")
    picks_VT = sample_indices(range(len(files)), sampling, draw)
    wanted = sorted({index for picks_T in picks_VT for index in picks_T})
    with _open(files[wanted[0]]) as first:
        size = first.size
    frames_CHW = {index: _decode(files[index], size) for index in wanted}
    return [
        Clip(
            frames_TCHW=torch.stack([frames_CHW[index] for index in picks_T]),
            indices=tuple(picks_T),
            timestamps=tuple(index / FPS for index in picks_T),
            path=folder,
            warnings=tuple(notes),
        )
        for picks_T in picks_VT
    ]


def probe_frames(folder: str, *, skip: int = 0, count: int | None = None) -> VideoInfo:
    """Look at a folder of pictures and the first of them, as `video.probe` does at a file.

    Raises:
        SttmError: if the folder cannot be read, or its first picture is missing or broken.
    """
    files = list_frames(folder)[skip:][:count]
    if len(files) < (count or 1):
        raise SttmError(f"{folder} holds only {len(files)} of the {count or 1} pictures listed; extract it again.")
    with _open(files[0]) as image:
        return VideoInfo(
            path=folder,
            width=image.width,
            height=image.height,
            fps=None,
            num_frames=len(files),
            duration_seconds=None,
            rotation=0,
            codec=(image.format or "picture").lower(),
            pixel_format=image.mode,
        )


def list_frames(folder: str) -> list[Path]:
    """The pictures of a folder by their numbers, without those of optical flow.

    Raises:
        SttmError: if the folder cannot be read, holds no picture, or more than one series of them.
    """
    series: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    try:
        files = [path for path in Path(folder).iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    except OSError as error:
        raise SttmError(f"{folder} is no folder of frames ({error.strerror}); check the path.") from error
    for path in files:
        digits = re.search(r"\d*$", path.stem)
        number = digits[0] if digits else ""
        series[path.stem.removesuffix(number)].append((int(number or 0), path))
    shown = {prefix: pictures for prefix, pictures in series.items() if not prefix.startswith(("flow", "."))}
    if len(shown) != 1:
        found = f"pictures of {len(shown)} series ({', '.join(sorted(shown)[:3])})" if shown else "no picture"
        raise SttmError(f"{folder} holds {found}; wanted is one, such as img_00001.jpg, img_00002.jpg, ...")
    return [path for _, path in sorted(*shown.values())]


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise SttmError(f"{path} is no readable picture ({error}); extract it again.") from error


def _decode(path: Path, size: tuple[int, int]) -> Tensor:
    """One picture as uint8 CHW; one of another size is scaled to the first's, as video frames are."""
    with warnings.catch_warnings(), _open(path) as image:
        warnings.simplefilter("ignore")  # of Pillow, about palettes and metadata
        try:
            shown = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise SttmError(f"{path} is a broken picture ({error}); extract it again.") from error
    if shown.size != size:
        shown = shown.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(shown)).permute(2, 0, 1)
