"""Options that several commands share, and how their texts are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sttm.cli.printing import note
from sttm.errors import SttmError

if TYPE_CHECKING:
    from torch import nn

Model = Annotated[
    str | None, typer.Option(metavar="M", help="Bundled name, folder or hub id.", show_default="the bundled one")
]
Compute = Annotated[str | None, typer.Option(metavar="C", help="Share of the plain model's multiply-adds to spend.")]
Method = Annotated[str | None, typer.Option(help="How to merge: sttm, or a baseline.", show_default="sttm")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Learned = Annotated[bool, typer.Option("--learned", help="Add the trainable parts; they start as if not there.")]
Root = Annotated[Path | None, typer.Option(help="Where the paths of a list start.", show_default="beside it")]
Format = Annotated[str, typer.Option(help="Annotation format of a list.")]
Batch = Annotated[int, typer.Option(min=1, help="Clips that go through the model at once.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto is CUDA where there is a CUDA device.")]
Dtype = Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 is by autocast.")]
EngineDtype = Annotated[Literal["fp32", "bf16", "int8"], typer.Option(help="int8: engines onnx and openvino.")]
EngineName = Literal["eager", "compile", "onnx", "openvino", "auto"]
Engine = Annotated[EngineName, typer.Option(help="What runs the model; auto measures which is fastest.")]
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Read videos in processes of their own, 60 s and 4 GiB each at most.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Overrides the config, as optimizer.lr=1e-4; may be repeated."),
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed makes the same videos.")]


def read_compute(text: str) -> float:
    """Read a compute; `sttm.apply` checks it again, but only after seconds of loading."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise SttmError(f"compute={text} is not above 0 and at most 1; give the share to spend, such as 0.62")
    return value


def read_merging(compute: str | None, method: str | None) -> float | None:
    """Read --compute, None where it was not given; refuse a --method without it."""
    if compute is None and method is not None:
        raise SttmError(f"--method {method} says how to merge but not how much; add, say, --compute 0.62")
    return None if compute is None else read_compute(compute)


def names(text: str) -> list[str]:
    """Read 'a, b' as two names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def bring(network: "nn.Module", compute: float | None, method: str | None) -> float:
    """Bring a model to a compute, and return what it then costs relative to its plain self.

    Mergers that the model was saved with are kept if they meet the compute; if not, stderr says that they are replaced.
    """
    from sttm import models

    own = models.bring_to_compute(network, None)
    plan = models.bring_to_compute(network, compute, method or "sttm")
    if own is not None and plan is not own:
        note(f"the mergers that the model came with (compute {own.compute:.3f}) make way for --compute {compute}")
    return 1.0 if plan is None else plan.compute
