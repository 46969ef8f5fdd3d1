"""What the user types: options that commands share, and how their texts are read."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sttm.cli.printing import complain
from sttm.errors import SttmError

if TYPE_CHECKING:
    import torch
    from torch import nn

Model = Annotated[str | None, typer.Option(metavar="M", help="Bundled name, folder or hub id; bundled if left out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Batch = Annotated[int, typer.Option(min=1, help="Clips that go through the model at once.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto is CUDA where there is some.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="K=V", help="Goes over the config, as optimizer.lr=1e-4; may be given several times."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed makes the same videos.")]


def read_compute(text: str) -> float:
    """Read a compute; the plug checks it again, but only after seconds of loading."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise SttmError(f"compute={text} is not above 0 and at most 1: give the part to keep, such as 0.62.")
    return value


def names(text: str) -> list[str]:
    """Read 'a, b' as two names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def device_of(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise SttmError("device=cuda, but torch sees no CUDA device: use --device cpu, or see sttm doctor.")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def bring_to(network: "nn.Module", compute: float | None, method: str) -> float:
    """Bring the model to what the user wants to spend; what it then costs, relative to its plain self."""
    from sttm.patching import api

    own = api.plan_of(network).compute if api.is_merged(network) else 1.0
    if compute is None or (method == "sttm" and own <= compute < own + 0.01 and api.is_merged(network)):
        return own
    if api.is_merged(network):
        complain(f"the mergers that the model came with (compute {own:.3f}) make way for --compute {compute}.")
        api.remove(network)
    return api.apply(network, compute=compute, method=method).compute
