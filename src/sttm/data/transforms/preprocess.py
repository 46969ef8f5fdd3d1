"""From decoded frames to a model's pixels, exactly as its own transformers processor makes them.

The steps are always the same: resize, crop, rescale, normalise. Only the numbers differ between models, and
they are read from the JSON files of a checkpoint.

Legend: T frames, C = 3 colours, H height, W width, K spatial crops of one clip.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sttm.config.parsing import read_json
from sttm.data.transforms.processor_config import (
    FAMILIES,
    FILTERS,
    PROCESSORS,
    Family,
    InputConfig,
    ProcessorSettings,
    Sides,
    find_settings,
    height_width,
    model_config,
    processor_class,
    validate,
)
from sttm.data.video.read import Sampling
from sttm.errors import SttmError, shown

Box = tuple[int, int, int, int]  # top, left, bottom, right
LARGEST_RESIZED = 2**24  # pixels; of a frame that would become larger, only the crops are resized


@dataclass(frozen=True)
class Preprocess:
    """A model's preprocessing, callable: frames_TCHW to pixels_KTCHW.

    transformers has two kinds of processors, whose resized pixels differ by a level or two of 255: image
    processors resize with Pillow, video processors with torch (through torchvision). `resize_with` says which.
    """

    processor: str
    """Stem of the transformers class: "VideoMAE" for VideoMAEImageProcessor or VideoMAEVideoProcessor."""
    sampling: Sampling
    """Frames that the model takes of a video."""
    resize: int | tuple[int, int] | None
    """Shorter side in pixels, or height and width, or None to leave frames as they are."""
    crop: tuple[int, int] | None
    """Height and width, or None."""
    rescale_factor: float
    offset: float
    """Added after rescaling and before normalising: -1 for ViViT, else 0."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bilinear"
    resize_with: str = "pillow"

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Preprocess":
        """Read a checkpoint's own settings, or its family's published ones where the folder holds none.

        Raises:
            SttmError: for a missing or broken file, an unknown family or processor, or an impossible value.
        """
        folder = Path(folder)
        file = folder / "config.json"
        values = model_config(read_json(file))
        name = values.get("model_type")
        family = FAMILIES.get(name) if isinstance(name, str) else None
        if family is None:
            raise SttmError(f"{file} has model_type={shown(name)}; known families are {', '.join(FAMILIES)}")
        config = validate(InputConfig, values, file)
        num_frames = getattr(config, family.num_frames_key) or family.num_frames
        found = find_settings(folder)
        if found is not None:
            return _from_settings(*found, num_frames, family)
        crop = height_width(getattr(config, family.image_size_key) or family.image_size, file, family.image_size_key)
        mean, std = family.statistics
        return cls(
            processor=family.processor,
            sampling=Sampling(num_frames),
            resize=family.resize(crop),
            crop=crop,
            rescale_factor=PROCESSORS[family.processor].rescale_factor,
            offset=-1.0 if family.processor == "Vivit" else 0.0,
            mean=mean,
            std=std,
            resize_with="torch" if family.processor == "VJEPA2" else "pillow",
        )

    def to_folder(self, folder: str | Path) -> Path:
        """Write the settings where `from_folder` and transformers find them, and return that file.

        The number of frames is not among them: it is in the model's config.json.

        Raises:
            SttmError: if the folder holds other settings that are read before these.
        """
        name = "video_preprocessor_config.json" if self.resize_with == "torch" else "preprocessor_config.json"
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self._settings(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        found = find_settings(file.parent)
        if found is None or found[1] != file:
            raise SttmError(f"{folder} has other settings that would be read first; save into an empty folder")
        return file

    def _settings(self) -> dict[str, Any]:
        """Return the settings under the keys of transformers' JSON files."""
        kind = "video" if self.resize_with == "torch" else "image"
        settings: dict[str, Any] = {
            f"{kind}_processor_type": f"{self.processor}{kind.capitalize()}Processor",
            "do_resize": self.resize is not None,
            "do_center_crop": self.crop is not None,
            "do_rescale": (self.rescale_factor, self.offset) != (1, 0),
            "do_normalize": True,
            "resample": {name: number for number, name in FILTERS.items()}[self.resample],
            "rescale_factor": self.rescale_factor,
            "image_mean": self.mean,
            "image_std": self.std,
        }
        if isinstance(self.resize, tuple):
            settings["size"] = dict(zip(("height", "width"), self.resize, strict=True))
        elif self.resize is not None:
            settings["size"] = {"shortest_edge": self.resize}
        if self.crop is not None:
            settings["crop_size"] = dict(zip(("height", "width"), self.crop, strict=True))
        if self.processor == "Vivit":
            settings["offset"] = self.offset != 0
        if self.sampling.mode == "dense":  # transformers keeps keys that it does not know
            settings |= {"frame_sampling": "dense", "frame_stride": self.sampling.stride}
        return settings

    def __call__(self, frames_TCHW: Tensor, crops: int = 1) -> Tensor:
        """Turn uint8 RGB frames into float32 pixels_KTCHW: K = 1 centre crop, or 3 along the longer side.

        Raises:
            SttmError: for another number of crops, or frames that are no uint8 RGB clip.
        """
        return self.normalise(self.resize_and_crop(frames_TCHW, crops))

    def resize_and_crop(self, frames_TCHW: Tensor, crops: int = 1, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the uint8 frames_KTCHW before normalisation; see `__call__`.

        Args:
            shift: pixels by which crops are moved down and to the right; beyond the resized frame is black.
        """
        shape = tuple(frames_TCHW.shape)
        if frames_TCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            given = f"shape {shape} and type {frames_TCHW.dtype}"
            raise SttmError(f"frames of {given} are no clip; give uint8 RGB frames of shape (T, 3, H, W)")
        if crops not in (1, 3) or (crops == 3 and self.crop is None):
            allowed = "1 or 3" if self.crop else "1, as this model takes whole frames"
            raise SttmError(f"crops={crops!r} is not possible; give {allowed}")
        if shape[0] > 1 and frames_TCHW.stride(0) == 0:  # one frame, repeated
            return self.resize_and_crop(frames_TCHW[:1], crops, shift).expand(-1, shape[0], -1, -1, -1)
        size = self._resized_size(*shape[2:])
        y, x = shift
        boxes = [(y0 + y, x0 + x, y1 + y, x1 + x) for y0, x0, y1, x1 in self._boxes(*size, crops)]
        crops_TKCHW = [self._crops(frame_CHW, size, boxes) for frame_CHW in frames_TCHW]
        return torch.stack([torch.stack(crops_TCHW) for crops_TCHW in zip(*crops_TKCHW, strict=True)])

    def normalise(self, frames_XCHW: Tensor) -> Tensor:
        """Rescale and normalise levels from 0 to 255, of any type and with any leading axes, to float32."""
        # (x * factor + offset - mean) / std, as one product and one sum a pixel.
        scale_C = torch.tensor([self.rescale_factor / std for std in self.std])
        shift_C = torch.tensor([(self.offset - m) / std for m, std in zip(self.mean, self.std, strict=True)])
        return frames_XCHW.to(torch.float32, copy=True).mul_(scale_C[:, None, None]).add_(shift_C[:, None, None])

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a frame after resizing."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        return self.resize * height // min(height, width), self.resize * width // min(height, width)

    def _boxes(self, height: int, width: int, crops: int) -> list[Box]:
        """Return the part of the resized frame that each crop shows.

        Where the frame is smaller than the crop, a part begins before it and ends behind it: that is black. Image
        processors put the odd row before the frame.
        """
        if self.crop is None:
            return [(0, 0, height, width)]
        crop_height, crop_width = self.crop
        spare_y, spare_x = height - crop_height, width - crop_width
        extra = 1 if self.resize_with == "pillow" else 0
        middle_y = spare_y // 2 if spare_y >= 0 else -((extra - spare_y) // 2)
        middle_x = spare_x // 2 if spare_x >= 0 else -((extra - spare_x) // 2)
        corners = [(middle_y, middle_x)]
        if crops == 3 and max(width, crop_width) >= max(height, crop_height):
            corners = [(middle_y, x) for x in (0, middle_x, spare_x)] if spare_x > 0 else corners * 3
        elif crops == 3:
            corners = [(y, middle_x) for y in (0, middle_y, spare_y)] if spare_y > 0 else corners * 3
        return [(y, x, y + crop_height, x + crop_width) for y, x in corners]

    def _crops(self, frame_CHW: Tensor, size: tuple[int, int], boxes: list[Box]) -> list[Tensor]:
        """Return the boxes of the frame resized to `size`; a frame that would become huge is cut before."""
        height, width = size
        resized_CHW = self._resize(frame_CHW, size) if height * width <= LARGEST_RESIZED else None
        crops_CHW = []
        for y0, x0, y1, x1 in boxes:
            top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
            if resized_CHW is not None:
                crop_CHW = resized_CHW[:, top:bottom, left:right]
            else:
                crop_CHW = self._resize_part(frame_CHW, size, (top, left, bottom, right))
            crops_CHW.append(F.pad(crop_CHW, (left - x0, x1 - right, top - y0, y1 - bottom)))
        return crops_CHW

    def _resize(self, frame_CHW: Tensor, size: tuple[int, int]) -> Tensor:
        if size == tuple(frame_CHW.shape[1:]):
            return frame_CHW
        if self.resize_with == "torch":
            return F.interpolate(frame_CHW[None], size, mode=self.resample, antialias=True)[0]
        return _from_picture(_to_picture(frame_CHW).resize(size[::-1], self._kernel))

    def _resize_part(self, frame_CHW: Tensor, size: tuple[int, int], box: Box) -> Tensor:
        """Resize only what a box of the resized frame shows, within a level of 255 of resizing all of it.

        The numbers of a box are floats of 32 bits: what surrounds the part is cut off first, to keep them small.
        """
        if (box[2] - box[0]) * (box[3] - box[1]) > LARGEST_RESIZED:
            given = "x".join(map(str, reversed(frame_CHW.shape[1:])))
            raise SttmError(f"frames of {given} pixels would become {size[1]}x{size[0]}; cut or scale the video first")
        bounds = []
        for begin, end, length, resized in zip(box[:2], box[2:], frame_CHW.shape[1:], size, strict=True):
            scale = length / resized
            margin = 2 * max(scale, 1) + 1  # as far as a cubic kernel reaches
            first, last = max(int(begin * scale - margin), 0), min(int(end * scale + margin) + 1, length)
            bounds.append((first, last, begin * scale - first, min(end * scale, length) - first))
        (top, bottom, y0, y1), (left, right, x0, x1) = bounds
        part = _to_picture(frame_CHW[:, top:bottom, left:right])
        shape = (box[3] - box[1], box[2] - box[0])
        return _from_picture(part.resize(shape, self._kernel, (x0, y0, x1, y1)))

    @property
    def _kernel(self) -> Image.Resampling:
        return Image.Resampling[self.resample.upper()]


def _to_picture(frame_CHW: Tensor) -> Image.Image:
    return Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())


def _from_picture(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _from_settings(settings: ProcessorSettings, file: Path, num_frames: int, family: Family) -> Preprocess:
    """Build a Preprocess from a processor's JSON, with its class's defaults for what that leaves out."""
    processor, resize_with = processor_class(settings, file, family)
    defaults = PROCESSORS[processor]
    crop = height_width(settings.crop_size or defaults.crop, file, "crop_size")
    resize: int | tuple[int, int]
    if processor == "VJEPA2":  # its class derives the size from the crop, whatever the file says
        resize = int(crop[0] * 256 / 224)
    elif isinstance(settings.size, Sides) and settings.size.shortest_edge is None:
        resize = height_width(settings.size, file, "size")
    else:
        shortest = settings.size.shortest_edge if isinstance(settings.size, Sides) else settings.size
        resize = shortest or defaults.size
    moves = processor == "Vivit" and (resize_with == "torch" or settings.offset is not False)
    mean = _per_colour(settings.image_mean, defaults.statistics[0])
    std = _per_colour(settings.image_std, defaults.statistics[1])
    return Preprocess(
        processor=processor,
        sampling=Sampling(num_frames, settings.frame_sampling, settings.frame_stride),
        resize=resize if settings.do_resize else None,
        crop=crop if settings.do_center_crop else None,
        rescale_factor=(settings.rescale_factor or defaults.rescale_factor) if settings.do_rescale else 1.0,
        offset=-1.0 if settings.do_rescale and moves else 0.0,
        mean=mean if settings.do_normalize else (0.0,) * 3,
        std=std if settings.do_normalize else (1.0,) * 3,
        resample=FILTERS[settings.resample or 2],
        resize_with=resize_with,
    )


def _per_colour(value: float | tuple[float, ...] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if value is None:
        return default
    return value if isinstance(value, tuple) else (value,) * 3
