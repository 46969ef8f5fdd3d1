"""Videos that are folders of pictures, one a frame, as Jester and the frame lists of mmaction2 have them.

Legend: T frames of a clip, C = 3 colours (red, green, blue), H height, W width, V temporal views.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sttm.data.video.claims import check_pixels
from sttm.data.video.decode import Prepare
from sttm.data.video.read import Clip, VideoInfo, stack
from sttm.data.video.sampling import Sampling, sample_indices
from sttm.errors import SttmError

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # whatever the suffix; Pillow would start other programs for some
FPS = 25  # pictures do not tell their rate; this only gives their timestamps a unit


def read_frames(
    folder: str,
    sampling: Sampling,
    *,
    skip: int = 0,
    count: int | None = None,
    rng: np.random.Generator | None = None,
    prepare: Prepare | None = None,
) -> list[Clip]:
    """Choose and decode pictures as `read` does frames of a file: one Clip a temporal view.

    Args:
        skip: pictures before the video's first, where several videos share a folder.
        count: number of pictures; all that follow if left out.
        rng: choose frames at random, as in training.
        prepare: as in `read`.

    Raises:
        SttmError: if the folder cannot be read, holds no picture, or a wanted picture is broken.
    """
    files = list_frames(folder)[skip:][:count]
    if not files:
        raise SttmError(f"{folder} ends before picture {skip + 1}; check its offset in the list, or extract it again")
    notes = []
    if count is not None and len(files) < count:
        notes.append(f"the list announces {count} frames but the folder holds only {len(files)}")
    indices_VT = sample_indices(range(len(files)), sampling, rng)
    wanted = sorted({index for indices_T in indices_VT for index in indices_T})
    with _open(files[wanted[0]]) as first:
        size = first.size
    pictures_KCHW = {}
    for index in wanted:
        frame_CHW = _decode(files[index], size)
        pictures_KCHW[index] = prepare(frame_CHW) if prepare else frame_CHW[None]
    return [
        Clip(
            frames_TCHW=frames_TCHW,
            indices=tuple(indices_T),
            timestamps=tuple(index / FPS for index in indices_T),
            path=folder,
            warnings=(*notes, *sampling.warnings_for(len(files))),
        )
        for indices_T in indices_VT
        for frames_TCHW in stack([pictures_KCHW[index] for index in indices_T])
    ]


def probe_frames(folder: str, *, skip: int = 0, count: int | None = None) -> VideoInfo:
    """List a folder of pictures and read the header of the first; raise SttmError if that is missing or broken."""
    files = list_frames(folder)[skip:][:count]
    if len(files) < (count or 1):
        raise SttmError(f"{folder} holds only {len(files)} of the {count or 1} pictures listed; extract it again")
    with _open(files[0]) as image:
        return VideoInfo(folder, image.width, image.height, num_frames=len(files))


def list_frames(folder: str) -> list[Path]:
    """Return the pictures of a folder in the order of their numbers, without those of optical flow.

    Raises:
        SttmError: if the folder cannot be read, holds no picture, or more than one series of them.
    """
    series: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    try:
        with os.scandir(folder) as entries:  # a pipe or a device named like a picture would block its reader
            files = [Path(e.path) for e in entries if Path(e.name).suffix.lower() in PICTURE_SUFFIXES and e.is_file()]
    except OSError as error:
        raise SttmError(f"{folder} is no folder of frames ({error.strerror}); check the path") from error
    for path in files:
        digits = re.search(r"\d*$", path.stem)
        number = digits[0] if digits else ""
        series[path.stem.removesuffix(number)].append((int(number or 0), path))
    shown = {prefix: pictures for prefix, pictures in series.items() if not prefix.startswith(("flow", "."))}
    if len(shown) != 1:
        found = f"pictures of {len(shown)} series ({', '.join(sorted(shown)[:3])})" if shown else "no picture"
        raise SttmError(f"{folder} holds {found}; it must hold one, such as img_00001.jpg, img_00002.jpg, ...")
    return [path for _, path in sorted(*shown.values())]


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SttmError(f"{path} is no readable picture ({error}); extract it again") from error
    try:
        check_pixels(path, image.width, image.height, path.stat().st_size)
    except (OSError, SttmError):
        image.close()
        raise
    return image


def _decode(path: Path, size: tuple[int, int]) -> Tensor:
    """Decode one picture as uint8 CHW, scaled to the first's size, as video frames are to the stream's."""
    with warnings.catch_warnings(), _open(path) as image:
        warnings.simplefilter("ignore")  # of Pillow, about palettes and metadata
        try:
            shown = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise SttmError(f"{path} is a broken picture ({error}); extract it again") from error
    if shown.size != size:
        shown = shown.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(shown)).permute(2, 0, 1)
