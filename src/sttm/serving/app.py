"""The web page and its API, on Gradio: it listens on this machine only, and fetches nothing from anywhere else."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sttm.errors import SttmError
from sttm.serving import answers
from sttm.serving.engine import LEAST, MOST, Answer, Engine

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: Requests that wait at most; those beyond are told to come back.
WAITING = 16
#: How often old uploads are looked for, and how old they may become, in seconds.
CLEANED = (60, 900)

FAILED = "the page failed on this request; see whether the disk of the machine is full, then try again"
#: What Gradio raises on a request that it cannot read.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
NO_REQUEST = "this is no request of this page: it takes an uploaded video, a model, a method and a compute"

CSS = """
footer { display: none !important; } .answers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.answers div { flex: 1 1 16rem; min-width: 0; } .answers table { width: 100%; border-collapse: collapse; }
.answers td { padding: .2rem .4rem .2rem 0; overflow-wrap: anywhere; } .answers td + td { text-align: right; }
#overlay img, #overlay video { display: block; max-width: 100%; height: auto; margin-top: 1rem; }
#overlay iframe { width: 100%; height: 62rem; border: 0; margin-top: 1rem; }
"""


# Over 40 lines: it is the page, from top to bottom.
def build(engine: Engine) -> Any:
    """Return the page as Gradio Blocks."""
    import gradio as gr

    classify = guarded(engine)
    first = next(iter(engine.names))
    with _blocks()(title="sttm", analytics_enabled=False, delete_cache=CLEANED) as page:
        allowed = f"{engine.limits.megabytes:g} MB and {engine.limits.seconds:g} seconds"
        gr.Markdown(f"# What merging does to a video\nChoose one of up to {allowed}; it stays on this machine.")
        # With audio, Gradio hands the file on as it is; without, it would need the program ffmpeg.
        camera = gr.WebcamOptions(mirror=False, constraints={"video": True, "audio": False})
        video = gr.Video(
            label="Video", sources=["upload", "webcam"], include_audio=True, webcam_options=camera, elem_id="video",
            height=280, buttons=[],
        )  # fmt: skip
        with gr.Row():
            model = gr.Dropdown(list(engine.names), value=first, label="Model", elem_id="model", filterable=False)
            method = gr.Dropdown(engine.methods, value="sttm", label="Method", elem_id="method", filterable=False)
        compute = gr.Slider(
            LEAST, MOST, value=round(engine.own[first], 2), step=0.01, label="Compute: share of the multiply-adds",
            elem_id="compute",
        )  # fmt: skip
        press = gr.Button("Classify", variant="primary", elem_id="classify")
        figures, overlay = gr.HTML(elem_id="figures"), gr.HTML(elem_id="overlay")
        model.change(lambda name: round(engine.own[name], 2), model, compute, api_visibility="private")

        def run(path: str | None, name: str, how: str, share: float) -> tuple[str, str]:
            try:
                answer = classify(path, name, how, share)
            except SttmError as error:
                return answers.sentence(str(error)), ""
            return answers.figures(answer), answers.overlay(answer)

        def api(path: str | None, name: str, how: str, share: float) -> dict[str, Any]:
            try:
                return classify(path, name, how, share).record()
            except SttmError as error:
                raise gr.Error(str(error), print_exception=False) from None

        wanted = [video, model, method, compute]
        press.click(run, wanted, [figures, overlay], api_visibility="private", concurrency_id="engine")
        upload, record = gr.File(visible=False), gr.JSON(visible=False)
        gr.Button(visible=False).click(
            api, [upload, model, method, compute], record, api_name="classify",
            concurrency_id="engine",
        )  # fmt: skip
    return page


def _blocks() -> Any:
    """Return the class of the page: Gradio's, which answers an odd request in a sentence that says nothing of it.

    Gradio itself would print where its code failed, and answer with paths of this machine.
    """
    import gradio as gr

    class Blocks(gr.Blocks):
        async def process_api(self, *values: Any, **options: Any) -> dict[str, Any]:
            try:
                return await super().process_api(*values, **options)
            except gr.Error as error:
                error.print_exception = False
                raise
            except Exception as error:
                raise gr.Error(NO_REQUEST, print_exception=False) from error

    return Blocks


async def _refuse(*_: Any) -> Any:
    """Return the answer to a request that Gradio cannot read: wrong JSON or form, or no function of the page."""
    return _answer(NO_REQUEST, 422)


def _answer(sentence: str, status: int) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({"detail": sentence}, status_code=status)


class Faults:
    """ASGI middleware: a request on which Gradio fails is refused in a sentence, and its stream ends.

    Gradio raises on some requests that it cannot read, in the middle of an answer too. The server would answer with
    status 500, or break the connection, and print a traceback.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import ClientDisconnect

        started = False

        async def sending(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:  # an upload that its sender broke off
            return
        except Exception as error:
            if scope["type"] != "http":
                raise
            # Said in every case: a fault of the page itself may be among them.
            logger.warning("a request of the page failed: %s", type(error).__name__)
            if started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif isinstance(error, UNREADABLE):
                await _answer(NO_REQUEST, 422)(scope, receive, send)
            else:
                await _answer(FAILED, 500)(scope, receive, send)


def guarded(engine: Engine) -> Callable[[str | None, str, str, float], Answer]:
    """Return what classifies for the page: whatever goes wrong is an SttmError that shows nothing of the machine."""

    def classify(path: str | None, model: str, method: str, compute: float) -> Answer:
        if not path:
            raise SttmError("there is no video; choose one, or record one with the camera")
        try:
            return engine.classify(path, model, method, compute)
        except SttmError:
            raise
        except Exception as error:  # a bug of ours or of a codec must not take the page down
            kind = type(error).__name__
            raise SttmError(f"classifying it failed unexpectedly ({kind}); try another video") from error

    return classify


@contextmanager
def serving(engine: Engine, port: int) -> Iterator[str]:
    """Serve the page while inside, and yield its address; uploads are removed when it ends.

    Raises:
        SttmError: if the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="sttm-serve-") as folder:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        import gradio as gr
        from fastapi.exceptions import RequestValidationError
        from starlette.middleware import Middleware

        own = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        page = build(engine).queue(max_size=WAITING, default_concurrency_limit=1)
        try:
            _, address, _ = page.launch(
                server_name=HOST, server_port=port or None, prevent_thread_lock=True, quiet=True, share=False,
                show_error=False, enable_monitoring=False, ssr_mode=False, css=CSS, theme=own,
                max_file_size=int(4e6 * engine.limits.megabytes),
                app_kwargs=dict(exception_handlers={RequestValidationError: _refuse}, middleware=[Middleware(Faults)]),
            )  # fmt: skip
        except OSError as error:
            raise SttmError(f"port {port} is taken; give another one with --port") from error
        try:
            yield address
        finally:
            page.close(verbose=False)
