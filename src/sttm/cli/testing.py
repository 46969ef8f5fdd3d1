"""What `sttm eval` tests and on what: a run's config with its trained model, or any model with any list."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sttm.cli.options import bring_to, device_of, read_compute
from sttm.cli.printing import complain, print_rows, printable
from sttm.errors import SttmError

if TYPE_CHECKING:
    from sttm.config import Settings
    from sttm.config.settings import DataSettings
    from sttm.evaluation.inference import Average
    from sttm.evaluation.report import Evaluation, Format

SplitName = Literal["train", "validation", "test"]

#: Unreadable videos, and classes, that are still printed one by one; files and --json have all of them.
PRINTED = 30


@dataclass(frozen=True)
class Request:
    """The options of `sttm eval` as they were typed; what is None was not, and a config may say it."""

    target: str
    overrides: Sequence[str]
    data: Path | None
    root: Path | None
    layout: str
    labels: Path | None
    split: str | None
    compute: str | None
    method: str | None
    views: str | None
    average: Average | None
    batch_size: int | None
    dtype: str | None
    device: str | None
    workers: int | None
    out: Path | None
    predictions: Format


def run(request: Request, *, as_json: bool) -> int:
    """Test what was asked for, print and keep what came out; the exit code."""
    fraction = None if request.compute is None else read_compute(request.compute)
    if request.method is not None and fraction is None:
        raise SttmError(f"--method {request.method} says how to merge but not how much: add, say, --compute 0.62.")
    settings = _read_config(request)
    request = _completed(request, settings)
    data, split = _data_of(request, settings)

    from sttm.evaluation import report as results

    with _only_first_speaks():
        if request.out is not None:
            results.claim(request.out, request.predictions)
        evaluation, facts = _test(request, settings, data, split, fraction)
        if os.environ.get("RANK", "0") != "0":
            return int(bool(evaluation.errors))
        failed = [{"path": path, "error": error} for path, error in evaluation.errors]
        summary = facts | evaluation.summary() | {"per_class": evaluation.per_class, "errors": failed}
        code = _report(evaluation, summary, as_json=as_json)
        if request.out is not None:
            results.write(evaluation, request.out, summary, request.predictions)
            complain(f"what came out is in {request.out}.")
        return code


def _test(
    request: Request, settings: Settings | None, data: DataSettings, split: SplitName, fraction: float | None
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation, and what was evaluated."""
    import torch

    from sttm import models
    from sttm.config import parse_views
    from sttm.data.datasets.video_set import read_split
    from sttm.data.transforms.preprocess import Preprocess
    from sttm.distributed import joined
    from sttm.evaluation import evaluate as engine
    from sttm.evaluation.inference import labels_of

    assert request.views and request.average and request.batch_size and request.device
    videos = read_split(data, split)
    model = _model_of(request, settings)
    preprocess = Preprocess.from_folder(models.resolve(model))
    network = models.load(model)
    engine.match_classes(videos, labels_of(network))
    device = device_of(request.device)
    compute = bring_to(network.to(device), fraction, request.method or "sttm")
    with joined(device) as (rank, world), _bar(-(-len(videos.videos) // world)) as advance:
        evaluation = engine.evaluate(
            network,
            videos,
            preprocess,
            views=parse_views(request.views),
            average=request.average,
            batch_size=request.batch_size,
            dtype=torch.bfloat16 if request.dtype == "bf16" else torch.float32,
            workers=request.workers,
            rank=rank,
            world=world,
            advance=advance,
        )
    facts: dict[str, Any] = {"model": model, "data": str(getattr(data, split).list)}
    facts["split"] = request.split if request.data else split
    return evaluation, facts | {"compute": compute, "views": request.views, "average": request.average}


def _completed(request: Request, settings: Settings | None) -> Request:
    """The request with what the config says, or the defaults, where nothing was typed."""
    from sttm.config import parse_views
    from sttm.config.settings import EvaluationSettings

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


def _data_of(request: Request, settings: Settings | None) -> tuple[DataSettings, SplitName]:
    """The list that --data names, read as a test split; or the config's test split, or else its validation split."""
    from sttm.config.settings import DataSettings, SplitSettings

    if request.data is not None:
        listed = SplitSettings(list=request.data, layout=request.layout, root=request.root, split=request.split)
        return DataSettings(test=listed, labels=request.labels), "test"
    if settings is None:
        raise SttmError("say where the videos are: --data LIST, an annotation file or a folder with one a class.")
    if request.root or request.labels or request.layout != "auto":
        raise SttmError("--root, --layout and --labels belong to --data; change the data of a config with --set.")
    splits = get_args(SplitName)
    if request.split is not None and request.split not in splits:
        raise SttmError(f"--split {request.split} is no split of a config; choose {', '.join(splits)}.")
    default = "validation" if settings.data.test is None else "test"
    return settings.data, cast(SplitName, request.split or default)


def _read_config(request: Request) -> Settings | None:
    """The settings if the target is a config; None if it is a model."""
    from sttm.config import load

    if request.target.endswith((".yaml", ".yml")):
        return load(request.target, request.overrides)
    if request.overrides:
        raise SttmError(f"--set changes a config, and {request.target} is a model; leave it out, or give a .yaml file.")
    return None


def _model_of(request: Request, settings: Settings | None) -> str:
    """The model to test: the trained one of a run, or else the checkpoint that the run starts from."""
    if settings is None:
        return request.target
    trained = settings.run.output / "model"
    if (trained / "config.json").is_file():
        return str(trained)
    nothing = f"there is no trained model in {trained}"
    if settings.model.start is None:
        raise SttmError(f"{nothing}, and the run starts from nothing; run sttm train {request.target} first.")
    complain(f"{nothing}: this tests {settings.model.start}, that the run starts from, as it is.")
    return settings.model.start


@contextmanager
def _only_first_speaks() -> Iterator[None]:
    """Of the processes that torchrun started only the first prints; an error that ends one is told by any."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; what it yields is called with the videos that were done."""
    console = Console(stderr=True)
    columns = (TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as drawn:
        task = drawn.add_task("videos", total=total)
        yield lambda videos: drawn.advance(task, videos)


def _report(evaluation: Evaluation, summary: dict[str, Any], *, as_json: bool) -> int:
    """Print what came out, the unreadable videos last; the exit code."""
    if as_json:
        print_rows("", [], as_json=summary)
    else:
        shown = {"model": summary["model"], "compute": summary["compute"], **_figures(evaluation)}
        print_rows(f"{summary['data']}, views {summary['views']}", [shown])
        if 0 < len(evaluation.per_class) <= PRINTED:
            print_rows("Classes", evaluation.per_class)
    errors = evaluation.errors
    for path, error in errors[:PRINTED]:
        path = printable(path)
        complain(error if path in error else f"{path}: {error}")
    if errors:
        more = f" ({len(errors) - PRINTED} more are not shown; --json and --out have all)" if errors[PRINTED:] else ""
        total = len(evaluation.answers) + len(evaluation.missing)
        complain(f"{len(errors)} of {total} videos could not be tested and are not counted{more}.")
    return int(bool(errors))


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as a line of a table."""
    counts: dict[str, Any] = {"clips": evaluation.clips, "unreadable": len(evaluation.errors)}
    if evaluation.top1.total:
        low, high = evaluation.top1.interval
        counts |= {
            "top-1": f"{evaluation.top1.share:.2%}",
            "95 % interval": f"{low:.2%} to {high:.2%}",
            "top-5": f"{evaluation.top5.share:.2%}",
            "mean class": f"{evaluation.mean_class:.2%}",
        }
    else:
        counts["accuracy"] = "no labels"
    return counts | {"clips/s": evaluation.clips / evaluation.seconds}
