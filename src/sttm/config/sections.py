"""The sections of the settings, each by itself; each setting has its meaning below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sttm.config.views import parse_views

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

#: Peak learning rate of Muon, where none is set.
MUON_LR = 0.02


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitSettings(Strict):
    """The annotations of one split, and which of their lines to use."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # where: {fold: 1}

    list: Path
    """An annotation file, a folder with one folder per class, or a pattern of tar shards."""
    format: str = "auto"
    """Its annotation format (see `sttm.data.datasets.formats.FORMATS`); "auto" detects it."""
    root: Path | None = None
    """Folder that the videos' paths are relative to; default: `data.root`, or else the folder of the list."""
    split: str | None = None
    """Use only the lines with this value in the column `split`."""
    where: dict[str, str | tuple[str, ...]] = {}
    """Use only the lines with this value, or one of these values, in each named column of a csv file."""


class DataSettings(Strict):
    """A data set: up to three splits that share their classes."""

    train: SplitSettings | None = None
    validation: SplitSettings | None = None
    test: SplitSettings | None = None
    root: Path | None = None
    """Folder that the videos' paths of all splits are relative to."""
    labels: Path | None = None
    """Names of the classes in the order of their numbers: labels.json, classInd.txt, or a file with a name a line."""
    without: tuple[str, ...] = ()
    """Classes to leave out."""
    unlabelled: bool = False
    """Train without labels: a distillation loss of weight 1, and the classes of the model."""
    max_missing: Share = 0.05
    """Largest share of a list that may be missing or unreadable; above it, training does not start."""
    direction_sensitive: bool | None = None
    """Whether classes differ in left and right, so that no clip is mirrored; default: judged by the class names."""
    workers: Steps | None = None
    """Decoding processes for each training process; default: one less than its share of the cores, at least one."""
    cache_gib: NotNegative = 0.0
    """Memory in GiB for decoded videos in each worker, for small sets that are read in many epochs."""


class ModelSettings(Strict):
    """The backbone, and the clips that it takes."""

    start: str | None = None
    """Checkpoint to start from: a bundled name, a folder or a hub id. Without it, `family` is trained from scratch."""
    family: str | None = None
    """Model family to train from scratch: videomae, vivit, timesformer or vjepa2."""
    config: dict[str, Any] = {}
    """Arguments of the family's transformers config; with `start`, changes to the checkpoint's config."""
    frames: Count | None = None
    """Frames of a clip; default: those of the checkpoint. Learned position embeddings are interpolated to them."""
    sampling: Literal["uniform", "dense"] | None = None
    """Frames spread over the whole video, or a stretch of it at `stride`; default: as the checkpoint."""
    stride: Count | None = None
    """Distance between the frames of dense sampling."""
    resize: Count | None = None
    """Shorter side of frames in pixels before the crop, where twice the image size keeps the middle half;
    default: as the checkpoint."""
    mean: tuple[float, float, float] | None = None
    """Mean of each colour in levels from 0 to 1 (ViViT: -1 to 1), such as the data set's; default: the checkpoint's."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of each colour, in the same units."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of skipping the last block (stochastic depth); it grows linearly from 0 at the first block."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """Attention implementation; default: transformers' choice. Eager is faster for small models on a CPU."""
    checkpointing: bool = False
    """Gradient checkpointing: recompute activations in the backward pass, for less memory and more time."""
    compile: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.start is None) == (self.family is None):
            raise ValueError("give start (a checkpoint) or family (a model from scratch), and one of the two only")
        if self.stride is not None and self.sampling != "dense":
            raise ValueError("stride belongs to sampling: dense; set that too, or leave stride out")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both, or leave both out")
        return self


class MergingSettings(Strict):
    """Token merging; compute: 1 trains the plain model."""

    compute: Annotated[float, Field(gt=0, le=1)] | None = None
    """Multiply-adds of the merged model over those of the plain one on the same clips; default: as the checkpoint."""
    match_frames: Count | None = None
    """In place of compute: merge down to the multiply-adds of the plain model on clips of this many frames."""
    method: str = "sttm"
    """"sttm", or the name of a baseline."""
    learned: bool = True
    """Give the mergers their trainable parameters."""
    selector: str | None = None
    """How meta tokens are chosen (see `sttm.TokenMerger`); default: the method's own."""
    layers: tuple[Steps, ...] | None = None
    """Blocks to merge before, counted from 0; default: the schedule's."""
    window: Count | None = None
    """Token frames that the first merger joins into one; default: the method's own."""
    motion: bool | None = None
    """Give slots the motion feature; default: the learned merger has it and baselines have not."""
    warmup_steps: Steps = 0
    """First steps, in which only the mergers' parameters are trained."""
    motion_start: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps before the motion feature is trained: until then the model learns from appearance alone.
    Default: 0.5 where a checkpoint gets a new feature, else 0 (from scratch, or with warmup_steps)."""

    @property
    def merges(self) -> bool:
        """Return whether a compute below that of the plain model is asked for."""
        return self.match_frames is not None or (self.compute is not None and self.compute < 1)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.compute is not None and self.match_frames is not None:
            raise ValueError("compute and match_frames both set the compute target; give one of them")
        if self.warmup_steps and not ((self.learned or self.motion) and self.merges):
            raise ValueError("warmup_steps trains only the mergers, so it needs learned: true and compute below 1")
        if self.motion_start and self.warmup_steps:
            raise ValueError("warmup_steps trains the motion feature first and motion_start later; give one of them")
        has_motion = self.learned and self.method == "sttm" if self.motion is None else self.motion
        if self.motion_start and not (has_motion and self.merges):
            raise ValueError("motion_start needs the motion feature: motion: true, and compute below 1")
        return self


class AugmentSettings(Strict):
    """Augmentation of training clips, the same for all frames of a clip."""

    crop: Literal["random_resized", "multi_scale", "centre"] = "random_resized"
    crop_area: tuple[Positive, Positive] = (0.5, 1.0)
    """Smallest and largest share of the frame's area that random_resized crops."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 1.3333)
    """Smallest and largest aspect ratio (width over height) of that crop."""
    shift: Steps = 0
    """Pixels by which the centre crop moves at most, up or down, left or right; crop: centre only."""
    flip: Share = 0.5
    """Probability of mirroring a clip; clips of a direction-sensitive data set are never mirrored."""
    randaugment: Steps = 0
    """RandAugment operations for each clip; 0 for none."""
    magnitude: Annotated[int, Field(ge=1, le=10)] = 7
    """Magnitude of these operations, from 1 to 10."""
    erasing: Share = 0.0
    """Probability of erasing a random box, the same in all frames."""
    mixup: NotNegative = 0.0
    """Alpha of the Beta distribution of mixup; 0 for none."""
    cutmix: NotNegative = 0.0
    """Alpha of the Beta distribution of cutmix; 0 for none."""
    repeats: Count = 1
    """Differently augmented clips of each decoded video (repeated augmentation)."""

    @field_validator("crop_area", "crop_ratio")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"the smallest, {value[0]}, is above the largest, {value[1]}; swap them")
        return value

    @model_validator(mode="after")
    def _centre_shifts(self) -> Self:
        if self.shift and self.crop != "centre":
            raise ValueError("shift moves the centre crop; set crop: centre too, or leave shift out")
        return self

    @property
    def mixes(self) -> bool:
        """Return whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0


class OptimizerSettings(Strict):
    """The optimizer and its schedule: a linear warm-up, then half a cosine."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for the rest (mergers, embeddings, head, norms, biases)."""
    lr: Positive = 1e-4
    """Peak learning rate of AdamW."""
    muon_lr: Positive = MUON_LR
    """Peak learning rate of Muon; it follows the same schedule as `lr`."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end of the schedule."""
    epochs: Positive | None = None
    """Length of the run in epochs; give this or `steps`."""
    steps: Count | None = None
    """Length of the run in optimizer steps."""
    warmup_steps: Steps | None = None
    """Steps of the warm-up; default: a tenth of all steps."""
    batch_size: Count = 32
    """Clips of one step over all processes: the same number means the same training on any machine."""
    micro_batch: Count | None = None
    """Clips that the model of one process takes at once; gradients are accumulated. Default: its share of the batch."""
    weight_decay: NotNegative = 0.05
    """Weight decay; biases, norms and position embeddings have none."""
    muon_weight_decay: NotNegative | None = None
    """Weight decay of the matrices that Muon trains; default: `weight_decay`."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Betas of AdamW."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate of each block relative to the block after it."""
    merger_lr: Positive | None = None
    """Peak learning rate of the mergers' parameters; default: `lr`."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters; longer gradients are scaled down to it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, which is then evaluated and saved as the model."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give epochs or steps, and one of the two only")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}; lower it")
        if self.name != "muon" and (self.muon_lr != MUON_LR or self.muon_weight_decay is not None):
            raise ValueError("muon_lr and muon_weight_decay belong to name: muon; set that too, or leave them out")
        return self


class DistillationSettings(Strict):
    """Distillation loss: the logits of a teacher as targets, beside the labels."""

    weight: Share = 0.5
    """Weight of the distillation loss; the classification loss has the rest."""
    temperature: Positive = 1.0
    teacher: str | None = None
    """Name, folder or hub id of the teacher; default: the plain model that training starts from."""


class RunSettings(Strict):
    """Output folder, seed, device and logging."""

    output: Path
    """Folder of the run; a run that was stopped continues there."""
    seed: Steps = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: a CUDA device if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 trains under autocast; the weights stay in fp32."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the model: a copy each (DDP), or shards of its weights (FSDP)."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Experiment trackers of accelerate to log to."""
    log_every: Count = 10
    save_every: Count = 500
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Number of last checkpoints to keep, besides the best one; one is for the case that the last is damaged."""
    evaluate_every: Count | None = None
    """Steps between evaluations on the validation split; default: one epoch."""


class EvaluationSettings(Strict):
    """Multi-view evaluation."""

    views: str = "1x1"
    """Views in time x crops in space."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over the views of a video."""
    batch_size: Count = 8
    """Views that the model takes at once."""

    @field_validator("views")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_views(value)
        return value
