"""`sttm serve`."""

import signal
import threading
from importlib.util import find_spec
from typing import Annotated

import typer

from sttm.cli.app import app
from sttm.cli.options import Device
from sttm.cli.printing import note
from sttm.errors import SttmError


@app.command(epilog="Example:  sttm serve --model sttm-words")
def serve(
    model: Annotated[
        list[str] | None, typer.Option(metavar="M", help="May be repeated.", show_default="the bundled ones")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 7860,
    megabytes: Annotated[float, typer.Option(min=0.001, help="Largest video.")] = 100,
    seconds: Annotated[float, typer.Option(min=0.1, help="Longest video.")] = 120,
    device: Device = "auto",
) -> None:
    """Open a web page on this machine. Drop a video, and see both answers and what merged."""
    if find_spec("gradio") is None:
        raise SttmError("sttm serve needs sttm[serve] (gradio): pip install 'sttm[serve]'")

    from sttm.models import BUNDLED
    from sttm.serving.app import serving
    from sttm.serving.engine import Engine, Limits

    engine = Engine(model or list(BUNDLED), Limits(megabytes, seconds), device)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # so that uploads are removed then too
    with serving(engine, port) as address:
        note(f"the page is at {address}; Ctrl-C ends it")
        ended.wait()
