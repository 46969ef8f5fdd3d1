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
from sttm.errors import SttmError, quoted


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
            raise SttmError(f"{file} has model_type={quoted(name)}; known families are {', '.join(FAMILIES)}")
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

    def resize_and_crop(self, frames_TCHW: Tensor, crops: int = 1) -> Tensor:
        """Return the uint8 frames_KTCHW before normalisation; see `__call__`."""
        shape = tuple(frames_TCHW.shape)
        if frames_TCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            given = f"shape {shape} and type {frames_TCHW.dtype}"
            raise SttmError(f"frames of {given} are no clip; give uint8 RGB frames of shape (T, 3, H, W)")
        if crops not in (1, 3) or (crops == 3 and self.crop is None):
            allowed = "1 or 3" if self.crop else "1, as this model takes whole frames"
            raise SttmError(f"crops={crops!r} is not possible; give {allowed}")
        resized_TCHW = self._resize(frames_TCHW)
        return torch.stack(self._crops(resized_TCHW, crops)) if self.crop else resized_TCHW[None]

    def normalise(self, frames_XCHW: Tensor) -> Tensor:
        """Rescale and normalise levels from 0 to 255, of any type and with any leading axes, to float32."""
        # (x * factor + offset - mean) / std, as one product and one sum a pixel.
        scale_C = torch.tensor([self.rescale_factor / std for std in self.std])
        shift_C = torch.tensor([(self.offset - m) / std for m, std in zip(self.mean, self.std, strict=True)])
        return frames_XCHW.to(torch.float32, copy=True).mul_(scale_C[:, None, None]).add_(shift_C[:, None, None])

    def _resize(self, frames_TCHW: Tensor) -> Tensor:
        _, _, height, width = frames_TCHW.shape
        if self.resize is None:
            return frames_TCHW
        size = self.resize
        if isinstance(size, int):  # of the shorter side
            size = size * height // min(height, width), size * width // min(height, width)
        if size == (height, width):
            return frames_TCHW
        if self.resize_with == "torch":
            return F.interpolate(frames_TCHW, size, mode=self.resample, antialias=True)
        kernel = Image.Resampling[self.resample.upper()]
        frames_THWC = frames_TCHW.permute(0, 2, 3, 1).contiguous().numpy()
        resized = [np.asarray(Image.fromarray(f).resize(size[::-1], kernel)) for f in frames_THWC]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)

    def _crops(self, frames_TCHW: Tensor, crops: int) -> list[Tensor]:
        assert self.crop is not None
        crop_height, crop_width = self.crop
        frames_TCHW = self._pad(frames_TCHW)
        _, _, height, width = frames_TCHW.shape
        spare_y, spare_x = height - crop_height, width - crop_width
        corners = [(spare_y // 2, spare_x // 2)]
        if crops == 3 and width >= height:
            corners = [(spare_y // 2, x) for x in (0, spare_x // 2, spare_x)]
        elif crops == 3:
            corners = [(y, spare_x // 2) for y in (0, spare_y // 2, spare_y)]
        return [frames_TCHW[:, :, y : y + crop_height, x : x + crop_width] for y, x in corners]

    def _pad(self, frames_TCHW: Tensor) -> Tensor:
        """Pad frames smaller than the crop with black; image processors put the odd row before them."""
        assert self.crop is not None
        _, _, height, width = frames_TCHW.shape
        spare_y, spare_x = max(self.crop[0] - height, 0), max(self.crop[1] - width, 0)
        if spare_y == spare_x == 0:
            return frames_TCHW
        extra = 1 if self.resize_with == "pillow" else 0
        left, top = (spare_x + extra) // 2, (spare_y + extra) // 2
        return F.pad(frames_TCHW, (left, spare_x - left, top, spare_y - top))


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
