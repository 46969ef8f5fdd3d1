"""The settings of a training run, in strict sections (`sttm.config.sections`).

An unknown key is an error. Sections that contradict each other are reported here, before anything is loaded.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from sttm.config.sections import (
    AugmentSettings,
    DataSettings,
    DistillationSettings,
    EvaluationSettings,
    MergingSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    Strict,
)


class Settings(Strict):
    """All settings of one training run."""

    data: DataSettings
    model: ModelSettings
    merging: MergingSettings = MergingSettings()
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings
    distillation: DistillationSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        optimizer, repeats = self.optimizer, self.augment.repeats
        batch = f"optimizer.batch_size={optimizer.batch_size}"
        if optimizer.batch_size % repeats:
            raise ValueError(f"{batch} is not a multiple of augment.repeats={repeats}; change one of the two")
        if optimizer.micro_batch is not None and optimizer.batch_size % optimizer.micro_batch:
            raise ValueError(f"{batch} is not a multiple of micro_batch={optimizer.micro_batch}; change one of the two")
        if optimizer.name == "muon" and self.run.strategy == "fsdp":
            raise ValueError(
                "optimizer.name=muon needs whole matrices and run.strategy=fsdp shards them; use run.strategy=ddp, or "
                "optimizer.name=adamw"
            )
        weight = 0 if self.distillation is None else self.distillation.weight
        if self.data.unlabelled and (weight < 1 or self.model.start is None):
            raise ValueError("data.unlabelled learns from a teacher alone; set distillation.weight=1 and model.start")
        if self.distillation is not None and self.distillation.teacher is None:
            if not self.merging.merges:
                raise ValueError("distillation from the plain model needs a merged one; set merging.compute below 1")
            if self.model.start is None:
                raise ValueError("distillation for a model from scratch needs a teacher; set distillation.teacher")
        return self
