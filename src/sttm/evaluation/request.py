"""What `sttm eval` evaluates: a run's config with its trained model, or any model on any data.

Nothing here imports torch, so that mistakes in options are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from sttm.errors import SttmError, unknown

if TYPE_CHECKING:
    from sttm.config import Settings
    from sttm.config.sections import DataSettings
    from sttm.evaluation.inference import Average
    from sttm.evaluation.report import Format

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Request:
    """The options of `sttm eval`; None is an option that was not given, which a config may set."""

    target: str
    overrides: Sequence[str]
    data: Path | None
    root: Path | None
    format: str
    labels: Path | None
    split: str | None
    compute: str | None
    method: str | None
    views: str | None
    average: Average | None
    batch_size: int | None
    dtype: str | None
    engine: str | None
    device: str | None
    workers: int | None
    isolate: bool
    out: Path | None
    predictions: Format
    report: Path | None = None


def read_config(request: Request) -> Settings | None:
    """Return the settings if the target is a config, None if it is a model."""
    from sttm.config import load

    if request.target.endswith((".yaml", ".yml")):
        return load(request.target, request.overrides)
    if request.overrides:
        raise SttmError(f"--set changes a config, and {request.target} is a model; leave it out, or give a .yaml file")
    return None


def completed(request: Request, settings: Settings | None) -> Request:
    """Return the request with the values of the config, or the defaults, for options that were not given."""
    from sttm.config import parse_views
    from sttm.config.sections import EvaluationSettings

    wanted = EvaluationSettings() if settings is None else settings.evaluation
    parse_views(request.views or wanted.views)
    return replace(
        request,
        views=request.views or wanted.views,
        average=request.average or wanted.average,
        batch_size=request.batch_size or wanted.batch_size,
        dtype=request.dtype or (settings.run.precision if settings else "fp32"),
        device=request.device or (settings.run.device if settings else "auto"),
        workers=request.workers or (settings.data.workers if settings else None),
    )


def data_of(request: Request, settings: Settings | None) -> tuple[DataSettings, SplitName]:
    """Return the data to evaluate on, and the split.

    That is the list of --data as a test split; or else the config's test split, or its validation split if it has none.

    Raises:
        SttmError: if neither names any, or if options contradict each other.
    """
    from sttm.config.sections import DataSettings, SplitSettings

    if request.data is not None:
        listed = SplitSettings(list=request.data, format=request.format, root=request.root, split=request.split)
        return DataSettings(test=listed, labels=request.labels), "test"
    if settings is None:
        raise SttmError("say where the videos are: --data LIST, an annotation file or a folder with one folder a class")
    if request.root or request.labels or request.format != "auto":
        raise SttmError("--root, --format and --labels belong to --data; change the data of a config with --set")
    splits = get_args(SplitName)
    if request.split is not None and request.split not in splits:
        raise unknown("split of a config, --split", request.split, splits)
    default = "validation" if settings.data.test is None else "test"
    return settings.data, cast(SplitName, request.split or default)


def model_of(request: Request, settings: Settings | None, notify: Callable[[str], None]) -> str:
    """Return the model to evaluate: the trained one of a run, or else the checkpoint that the run starts from.

    Call `notify` with a sentence if it is not the trained one; raise SttmError if the run has neither.
    """
    if settings is None:
        return request.target
    trained = settings.run.output / "model"
    if (trained / "config.json").is_file():
        return str(trained)
    nothing = f"there is no trained model in {trained}"
    if settings.model.start is None:
        raise SttmError(f"{nothing}, and the run starts from scratch; run sttm train {request.target} first")
    notify(f"{nothing}: this evaluates {settings.model.start}, from which the run starts")
    return settings.model.start
