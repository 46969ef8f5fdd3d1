"""`sttm stream`."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from sttm.cli.app import app
from sttm.cli.options import Compute, Device, Dtype, Method, Model, bring, read_merging
from sttm.cli.printing import complain, detail, printable, warn


# Over 40 lines: most are the options and what they mean.
@app.command(epilog="Example:  sttm stream rtsp://camera/1 --model my-model --compute 0.62 --segments")
def stream(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="File, URL, camera such as 0, or - for stdin.")],
    model: Model = None,
    compute: Compute = None,
    method: Method = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Sampled frames of a window.", show_default="as the model takes")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Frames from one to the next.", show_default="half a window")
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames sampled in a second.")] = 8.0,
    when_late: Annotated[
        Literal["skip", "wait"] | None,
        typer.Option(help="What happens while the model is late.", show_default="skip for live sources, else wait"),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a frame.")] = 10.0,
    segments: Annotated[bool, typer.Option("--segments", help="Join windows of one label.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Labels of each window.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "fp32",
) -> None:
    """Classify a long video or a camera in sliding windows. One line of JSON for each, at constant memory."""
    share = read_merging(compute, method)

    from sttm import models
    from sttm.data.live import check_source
    from sttm.devices import device_of, dtype_of
    from sttm.evaluation.inference import labels_of
    from sttm.evaluation.predict import bundled_notice
    from sttm.evaluation.stream import join, sliding_of, stream_windows

    check_source(source)
    network, preprocess = models.load_with_preprocess(model or models.DEFAULT)
    sliding = sliding_of(source, preprocess, window, stride, fps, when_late, timeout)
    notice = None if model else bundled_notice(labels_of(network))
    spent = bring(network.to(device_of(device)), share, method)
    if notice is not None:
        warn(notice)
    detail(f"{model or models.DEFAULT} on {device_of(device)} in {dtype}, compute {spent:.3f}, {sliding}")
    records = stream_windows(
        source, network, preprocess, sliding, top_k=top_k, compute=spent, dtype=dtype_of(dtype), notice=notice,
        note=lambda sentence: warn(printable(sentence)),
    )  # fmt: skip
    failed = 0
    for record in join(records) if segments else records:
        failed += _report(record)
    raise typer.Exit(int(failed > 0))


def _report(record: Mapping[str, Any]) -> bool:
    """Print one record, and what was wrong on stderr; return whether it is an error."""
    print(json.dumps(record), flush=True)
    place = f"{record['start']:.2f} to {record['end']:.2f} s"
    for warning in record.get("warnings", ()):
        warn(f"{place}: {warning}")
    if "skipped" in record:
        warn(f"{place}: {record['skipped']} windows before it were skipped, as the model was late")
    if "error" in record:
        complain(f"{place}: {record['error']}")
    return "error" in record
