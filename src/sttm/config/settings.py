"""What a training run can be told: strict sections, each setting with its meaning beside it.

A key that nobody knows is an error. Settings that contradict each other are found here, before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sttm.errors import SttmError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def parse_views(text: str) -> tuple[int, int]:
    """Read "5x3" as five temporal views times three spatial crops.

    Raises:
        SttmError: if it says anything else.
    """
    temporal, _, spatial = text.partition("x")
    if not temporal.isdecimal() or int(temporal) < 1 or spatial not in ("1", "3"):
        raise SttmError(f"views={text} is not TxS: give 1 or more in time and 1 or 3 in space, such as 5x3.")
    return int(temporal), int(spatial)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitSettings(_Strict):
    """Where the videos of one split are listed, and which lines of the list count."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # where: {fold: 1}

    list: Path
    """An annotation file, a folder with a folder for each class, or a pattern of tar shards."""
    layout: str = "auto"
    """How to read it (see `sttm.data.datasets.formats.FORMATS`); "auto" looks at the file."""
    root: Path | None = None
    """Folder that the videos' paths start from; `data.root` if left out, or else the list's own folder."""
    split: str | None = None
    """Lines whose column `split` says this, of a list that has one."""
    where: dict[str, str | tuple[str, ...]] = {}
    """Columns of a csv with the value, or the values, that a line must have there."""


class DataSettings(_Strict):
    """A data set: up to three splits that share their classes."""

    train: SplitSettings | None = None
    validation: SplitSettings | None = None
    test: SplitSettings | None = None
    root: Path | None = None
    labels: Path | None = None
    """Names of the classes in the order of their numbers: labels.json, classInd.txt, a label map with a name a line."""
    without: tuple[str, ...] = ()
    """Classes to leave out."""
    max_missing: Share = 0.05
    """Share of a list that may be missing or unreadable; above it nothing starts."""
    direction_sensitive: bool | None = None
    """Whether left and right tell classes apart, so that no clip may be mirrored; left out, the labels tell."""
    workers: Steps | None = None
    """Processes that decode, for each training process; left out, one less than the cores of each, at least one."""
    cache_gib: NotNegative = 0.0
    """Memory for decoded videos in each worker, for small sets that are read many times."""


class ModelSettings(_Strict):
    """The backbone, and the clips it gets."""

    start: str | None = None
    """A bundled name, a folder or a hub id to start from; left out, `family` and `config` describe one from nothing."""
    family: str | None = None
    config: dict[str, Any] = {}
    """Arguments of the family's transformers config; with `start`, changes to the checkpoint's own."""
    frames: Count | None = None
    """Frames of a clip; left out, what the checkpoint takes. Positions learnt for another number are interpolated."""
    sampling: Literal["uniform", "dense"] | None = None
    stride: Count | None = None
    """Distance between dense frames."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate at which the last block is skipped for a clip; it grows from 0 at the first."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """How attention is computed; left out, transformers chooses. A small model on a CPU trains faster with eager."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.start is None) == (self.family is None):
            raise ValueError("give start (a checkpoint) or family (a model from nothing), and one of the two only")
        if self.stride is not None and self.sampling != "dense":
            raise ValueError("stride belongs to sampling: dense")
        return self


class MergingSettings(_Strict):
    """The merger; compute: 1 trains the plain model."""

    compute: Annotated[float, Field(gt=0, le=1)] | None = None
    """Multiply-adds of the merged model over those of the plain one on the same clips."""
    match_frames: Count | None = None
    """Instead of compute: spend what the plain model spends on clips of this many frames."""
    method: str = "sttm"
    learned: bool = True
    selector: str | None = None
    layers: tuple[Steps, ...] | None = None
    """Blocks to merge before, counted from 0; left out, the schedule chooses."""
    window: Count | None = None
    """Token frames that the first merger joins to one."""
    warmup_steps: Steps = 0
    """Steps at the start in which only the merger's own parameters learn."""

    @property
    def merges(self) -> bool:
        return self.match_frames is not None or (self.compute is not None and self.compute < 1)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.compute is not None and self.match_frames is not None:
            raise ValueError("compute and match_frames both set the budget; give one of them")
        if self.warmup_steps and not (self.learned and self.merges):
            raise ValueError("warmup_steps trains the merger alone, so it needs learned: true and compute below 1")
        return self


class AugmentSettings(_Strict):
    """How training clips are varied; the same for all frames of a clip."""

    crop: Literal["random_resized", "multi_scale", "centre"] = "random_resized"
    crop_area: tuple[Positive, Positive] = (0.5, 1.0)
    """Least and greatest part of the frame's area that random_resized cuts out."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 1.3333)
    flip: Share = 0.5
    """Chance to mirror a clip; never done where the data set is direction-sensitive."""
    randaugment: Steps = 0
    """Operations for each clip; 0 for none."""
    magnitude: Annotated[int, Field(ge=1, le=10)] = 7
    """Strength of these operations, of 10."""
    erasing: Share = 0.0
    """Chance to blot out a box, the same in all frames."""
    mixup: NotNegative = 0.0
    """Alpha of the Beta distribution of mixup; 0 for none."""
    cutmix: NotNegative = 0.0
    repeats: Count = 1
    """Differently varied clips from each decoded video (repeated augmentation)."""

    @field_validator("crop_area", "crop_ratio")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"the least, {value[0]}, is above the greatest, {value[1]}")
        return value

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class OptimizerSettings(_Strict):
    """AdamW, warm-up and cosine."""

    lr: Positive = 1e-4
    min_lr: NotNegative = 1e-6
    epochs: Positive | None = None
    steps: Count | None = None
    warmup_steps: Steps | None = None
    """Left out: a tenth of all steps."""
    batch_size: Count = 32
    """Clips that one step learns from, over all processes: the same number means the same training on any machine."""
    micro_batch: Count | None = None
    """Clips that go through the model at once in one process; the rest is accumulated. Left out: all of its share."""
    weight_decay: NotNegative = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the rate of each block below the last."""
    merger_lr: Positive | None = None
    """Rate of the merger's own parameters; that of the last block if left out."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Positive | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, which is then what is evaluated and saved as the model."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give epochs or steps, and one of the two only")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        return self


class DistillationSettings(_Strict):
    """Learning from the plain model's logits besides the labels."""

    weight: Share = 0.5
    """Part of the loss that the teacher has."""
    temperature: Positive = 1.0
    teacher: str | None = None
    """Name, folder or hub id; left out, the plain model that training starts from."""


class RunSettings(_Strict):
    """Where and how it runs."""

    output: Path
    seed: Steps = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    trackers: tuple[str, ...] = ("tensorboard",)
    log_every: Count = 10
    save_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Last checkpoints to keep, besides the best one."""
    evaluate_every: Count | None = None
    """Steps between evaluations on the validation split; left out, one an epoch."""


class EvaluationSettings(_Strict):
    """Multi-view testing."""

    views: str = "1x1"
    """Views in time x crops in space."""
    average: Literal["probabilities", "logits"] = "probabilities"
    batch_size: Count = 8

    @field_validator("views")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_views(value)
        return value


class Settings(_Strict):
    """One training run, whole."""

    data: DataSettings
    model: ModelSettings
    merging: MergingSettings = MergingSettings()
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings
    distillation: DistillationSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings

    @model_validator(mode="after")
    def _agree(self) -> Self:
        optimizer, augment = self.optimizer, self.augment
        if optimizer.batch_size % augment.repeats:
            raise ValueError(
                f"optimizer.batch_size={optimizer.batch_size} is not a multiple of augment.repeats={augment.repeats}"
            )
        if optimizer.micro_batch is not None and optimizer.batch_size % optimizer.micro_batch:
            raise ValueError(
                f"optimizer.batch_size={optimizer.batch_size} is not a multiple of micro_batch={optimizer.micro_batch}"
            )
        if self.distillation is not None and self.distillation.teacher is None:
            if not self.merging.merges:
                raise ValueError("distillation from the plain model needs a merged one: set merging.compute below 1")
            if self.model.start is None:
                raise ValueError("distillation needs a teacher: a model from nothing has nothing to teach")
        return self
