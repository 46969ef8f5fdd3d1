"""`sttm eval`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sttm.cli.app import app
from sttm.cli.options import Compute, EngineName, Isolate, Json, Method, Sets, bring, read_merging
from sttm.cli.printing import cell, complain, complain_of_path, detail, note, print_rows, warn
from sttm.cli.progress import progress

if TYPE_CHECKING:
    from sttm.config import Settings
    from sttm.config.sections import DataSettings
    from sttm.evaluation.report import Evaluation
    from sttm.evaluation.request import Request, SplitName

#: Unreadable videos, and classes, that are printed one by one at most; files and --json have all of them.
PRINTED = 30


@app.command("eval", epilog="Example:  sttm eval configs/mine.yaml --views 2x3 --out results/")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="CONFIG|MODEL", help="A run's config, or a name, folder, hub id.")],
    data: Annotated[Path | None, typer.Option(metavar="LIST", help="Annotation file, or folder of classes.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where its paths start.", show_default="beside it")] = None,
    format: Annotated[str, typer.Option(help="Its annotation format.")] = "auto",
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Names of its classes.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the config, or in the list.", show_default="test")] = None,
    overrides: Sets = None,
    compute: Compute = None,
    method: Method = None,
    views: Annotated[str | None, typer.Option(metavar="TxS", help="Temporal x spatial.", show_default="1x1")] = None,
    average: Annotated[Literal["probabilities", "logits"] | None, typer.Option(help="What views average.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Views at once.", show_default="8")] = None,
    dtype: Annotated[Literal["fp32", "bf16", "int8"] | None, typer.Option(show_default="fp32")] = None,
    engine: Annotated[EngineName | None, typer.Option(help="What runs the model.", show_default="eager")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(show_default="auto")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode.", show_default="cores - 1")] = None,
    isolate: Isolate = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For tables, predictions, a plot.")] = None,
    predictions: Annotated[Literal["csv", "parquet"], typer.Option(help="Their format in --out.")] = "csv",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="For a page; evaluates a merged model without merging too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy on a data set. Videos that cannot be read are named, and not counted."""
    from sttm.evaluation.request import Request

    request = Request(
        target, overrides or (), data, root, format, labels, split, compute, method, views, average, batch_size,
        dtype, engine, device, workers, isolate, out, predictions, report,
    )  # fmt: skip
    raise typer.Exit(_run(request, as_json=as_json))


def _run(given: Request, *, as_json: bool) -> int:
    """Evaluate what was asked for, print and write the results, and return the exit code."""
    from sttm.evaluation import request as requests

    share = read_merging(given.compute, given.method)
    settings = requests.read_config(given)
    request = requests.completed(given, settings)
    data, split = requests.data_of(request, settings)

    from sttm.evaluation import report as results

    with _only_first_process_prints():
        if request.out is not None:
            results.check_packages(request.predictions)
            results.make_folder(request.out, "--out")
        if request.report is not None:
            results.check_page(request.report)
        evaluation, facts, page = _evaluate(request, settings, data, split, share)
        if os.environ.get("RANK", "0") != "0":
            return int(bool(evaluation.errors))
        failed = [{"path": path, "error": error} for path, error in evaluation.errors]
        summary = facts | evaluation.summary() | {"per_class": evaluation.per_class, "errors": failed}
        code = _report(evaluation, summary, as_json=as_json)
        if request.out is not None:
            results.write(evaluation, request.out, summary, request.predictions)
            note(f"the results are in {request.out}")
        if request.report is not None:
            results.write_page(page, request.report)
            note(f"the report is in {request.report}")
        return code


def _evaluate(
    request: Request, settings: Settings | None, data: DataSettings, split: SplitName, share: float | None
) -> tuple[Evaluation, dict[str, Any], str]:
    """Return the evaluation, what was evaluated, and the page of both where it is asked for."""
    from sttm import models
    from sttm.config import parse_views
    from sttm.data.datasets.video_set import read_split
    from sttm.devices import device_of
    from sttm.distributed import joined
    from sttm.engines.choice import check_choice, place
    from sttm.evaluation.evaluate import evaluate, match_classes
    from sttm.evaluation.inference import labels_of
    from sttm.evaluation.request import model_of
    from sttm.patching import api

    assert request.views and request.average and request.batch_size and request.device and request.dtype
    device, engine = device_of(request.device), request.engine or "eager"
    check_choice(engine, request.dtype, device)
    videos = read_split(data, split)
    model = model_of(request, settings, warn)
    network, preprocess = models.load_with_preprocess(model)
    match_classes(videos, labels_of(network))
    compute = bring(network.to(device), share, request.method)
    detail(f"{model} on {device} in {request.dtype}, compute {compute:.3f}, {preprocess.sampling}")
    compared = [(network, model)]
    if request.report is not None and api.is_merged(network) and api.plan_of(network).mergers:
        twin, what = models.plain_twin(network, model)
        compared.insert(0, (twin, f"without: {what}"))
    with joined(device) as (rank, world):
        each, evaluations = -(-len(videos.videos) // world), []
        with progress("videos", len(compared) * each) as advance:
            for one, _ in compared:
                runner = place(engine, one, request.dtype, batch=request.batch_size, note=note)
                evaluations += [evaluate(
                    runner, videos, preprocess, views=parse_views(request.views), average=request.average,
                    batch_size=request.batch_size, workers=request.workers,
                    isolate=request.isolate, rank=rank, world=world, advance=advance,
                )]  # fmt: skip
    facts: dict[str, Any] = {"model": model, "data": str(getattr(data, split).list)}
    facts["split"] = request.split if request.data else split
    facts |= {"compute": compute, "views": request.views, "average": request.average}
    facts |= {"engine": getattr(runner, "name", engine), "dtype": request.dtype}
    page = ""
    if request.report is not None and rank == 0:
        from sttm.visual.pages import evaluation as pages

        runs = [pages.Run(name, one, found) for (one, name), found in zip(compared, evaluations, strict=True)]
        told = [(key.capitalize(), cell(value)) for key, value in facts.items() if value is not None]
        page = pages.page(runs, videos, preprocess, told)
    return evaluations[-1], facts, page


@contextmanager
def _only_first_process_prints() -> Iterator[None]:
    """Silence all processes of torchrun but the first while inside; an error that ends a process is still printed."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _report(evaluation: Evaluation, summary: dict[str, Any], *, as_json: bool) -> int:
    """Print the results, then the unreadable videos; return the exit code."""
    if as_json:
        print_rows("", [], as_json=summary)
    else:
        shown = {"model": summary["model"], "compute": summary["compute"], **_figures(evaluation)}
        print_rows(f"{summary['data']}, views {summary['views']}", [shown])
        if 0 < len(evaluation.per_class) <= PRINTED:
            print_rows("Classes", evaluation.per_class)
    errors = evaluation.errors
    for path, error in errors[:PRINTED]:
        complain_of_path(path, error)
    if errors:
        more = f" ({len(errors) - PRINTED} more are not shown; --json and --out have all)" if errors[PRINTED:] else ""
        total = len(evaluation.answers) + len(evaluation.missing)
        complain(f"{len(errors)} of {total} videos could not be evaluated and are not counted{more}")
    return int(bool(errors))


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures as a row of a table."""
    counts: dict[str, Any] = {"clips": evaluation.clips, "unreadable": len(evaluation.errors)}
    if evaluation.top1.total:
        low, high = evaluation.top1.interval
        counts |= {
            "top-1": f"{evaluation.top1.share:.2%}",
            "95 % interval": f"{low:.2%} to {high:.2%}",
            "top-5": f"{evaluation.confusion.top5.share:.2%}",
            "mean class": f"{evaluation.confusion.mean_class:.2%}",
        }
    else:
        counts["accuracy"] = "no labels"
    return counts | {"clips/s": evaluation.clips / evaluation.seconds}
