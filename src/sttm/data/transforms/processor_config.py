"""Read and validate the JSON files of a checkpoint that say how its frames are preprocessed."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StrictBool, ValidationError, model_validator

from sttm.config.parsing import read_json
from sttm.errors import SttmError, shown

Whole = Annotated[int, Field(strict=True, gt=0)]
Side = Annotated[int, Field(strict=True, gt=0, le=4096)]
Mean = Annotated[float, Field(strict=True, ge=0, le=255, allow_inf_nan=False)]
Deviation = Annotated[float, Field(strict=True, gt=0, le=255, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5,) * 3, (0.5,) * 3)
FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which the JSON files use


@dataclass(frozen=True)
class Processor:
    """The defaults of a transformers processor class for settings that its JSON file leaves out."""

    size: int
    crop: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    rescale_factor: float = 1 / 255


PROCESSORS = {
    "VideoMAE": Processor(224, 224, _HALVES),
    "Vivit": Processor(256, 224, _HALVES, rescale_factor=1 / 127.5),
    "Timesformer": Processor(224, 224, _IMAGENET),
    "VJEPA2": Processor(292, 256, _IMAGENET),
}


@dataclass(frozen=True)
class Family:
    """How a model's config.json names its input, and the processor that its published checkpoints come with."""

    processor: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    num_frames: int
    image_size: int
    num_frames_key: str = "num_frames"
    image_size_key: str = "image_size"
    has_margin: bool = False
    """Whether the frames are resized to 256/224 of the crop, instead of to the crop itself."""

    def resize(self, crop: tuple[int, int]) -> int:
        """Return the length of the shorter side from which `crop` is cut."""
        return int(max(crop) * 256 / 224) if self.has_margin else max(crop)


FAMILIES = {
    "videomae": Family("VideoMAE", _IMAGENET, 16, 224),
    "vivit": Family("Vivit", _HALVES, 32, 224, has_margin=True),
    "timesformer": Family("VideoMAE", ((0.45,) * 3, (0.225,) * 3), 8, 224),
    "vjepa2": Family("VJEPA2", _IMAGENET, 64, 256, "frames_per_clip", "crop_size", has_margin=True),
}


class Sides(BaseModel):
    """A size in pixels, by one or two sides."""

    height: Side | None = None
    width: Side | None = None
    shortest_edge: Side | None = None
    longest_edge: None = None
    """A limit on the longer side is not supported: transformers' video models do not use it."""


#: Settings that may not be null, as files differ in what that would mean, and the step that each belongs to.
_NEEDED = {
    "size": "do_resize",
    "crop_size": "do_center_crop",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}


class ProcessorSettings(BaseModel):
    """A processor's JSON file; null, where it may be, and absent both mean the default of the processor's class."""

    video_processor_type: str | None = None
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: StrictBool = True
    do_center_crop: StrictBool = True
    do_rescale: StrictBool = True
    do_normalize: StrictBool = True
    size: Side | Sides | None = None
    crop_size: Side | Sides | None = None
    resample: Literal[2, 3] | None = None
    rescale_factor: Factor | None = None
    offset: StrictBool | None = None
    image_mean: Mean | tuple[Mean, Mean, Mean] | None = None
    image_std: Deviation | tuple[Deviation, Deviation, Deviation] | None = None
    frame_sampling: Literal["uniform", "dense"] = "uniform"
    frame_stride: Whole = 1

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        for key, step in _NEEDED.items() if isinstance(values, dict) else ():
            if values.get(key, 0) is None and values.get(step) is not False:
                raise ValueError(f"{key} is null, which leaves open what {step} does")
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class InputConfig(BaseModel):
    """The parts of a model's config.json that describe its input."""

    num_frames: Whole | None = None
    frames_per_clip: Whole | None = None
    image_size: Whole | tuple[Whole, Whole] | None = None
    crop_size: Whole | None = None


def model_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the config that describes the input: a wrapper model keeps its backbone's config inside."""
    inner = values.get("backbone_config")
    return inner | {"model_type": values.get("backbone_type")} if isinstance(inner, dict) else values


def processor_class(settings: ProcessorSettings, file: Path, family: Family) -> tuple[str, str]:
    """Return the stem of the processor's class and the library that it resizes with; raise SttmError for others."""
    name = settings.video_processor_type or settings.image_processor_type or settings.feature_extractor_type
    if name is None:
        is_video = family.processor == "VJEPA2" or file.name == "video_preprocessor_config.json"
        return family.processor, "torch" if is_video else "pillow"
    kinds = "ImageProcessor|VideoProcessor|FeatureExtractor"
    match = re.fullmatch(rf"({'|'.join(PROCESSORS)})({kinds})(?:Fast|Pil)?", name)
    if match is None:
        known = ", ".join(PROCESSORS)
        raise SttmError(f"{file} is made for {shown(name)}; allowed are the image and video processors of {known}")
    return match[1], "torch" if match[2] == "VideoProcessor" else "pillow"


def find_settings(folder: Path) -> tuple[ProcessorSettings, Path] | None:
    """Return a processor's settings and their file, in the order in which transformers looks for them, or None."""
    nested = folder / "processor_config.json"
    if nested.exists():
        values = read_json(nested)
        for key in ("video_processor", "image_processor"):
            if key in values:
                return validate(ProcessorSettings, values[key], nested), nested
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            return validate(ProcessorSettings, read_json(folder / name), folder / name), folder / name
    return None


def validate(model: type[Model], values: object, file: Path) -> Model:
    """Validate a file's values; raise SttmError for the first wrong value, with file, key and value."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            raise SttmError(f"{file}: {first['ctx']['error']}; correct the file") from None
        key = ".".join(str(part) for part in first["loc"][:1]) or "the whole"
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise SttmError(f"{file}: {key} is {shown(first['input'])}, but the {reason}; correct the file") from None


def height_width(size: int | Sides | tuple[int, int], file: Path, key: str) -> tuple[int, int]:
    """Return height and width, a square for one number; raise SttmError if only one of the two is given."""
    if isinstance(size, Sides):
        if size.height is None or size.width is None:
            raise SttmError(f"{file} has a {key} without height and width; give both, or one number")
        return size.height, size.width
    return size if isinstance(size, tuple) else (size, size)
