"""What the page shows of an answer, as html: figures, the plan, the picture, the video, the page to explore."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from html import escape
from pathlib import Path

from torch import Tensor

from sttm.serving.engine import Answer
from sttm.visual.pages import explorer
from sttm.visual.pages.page import data_uri
from sttm.visual.pictures import merge_picture
from sttm.visual.show import write

#: Classes that are named.
TOP = 5
#: Frames side by side, few enough for a phone, and how wide each is.
COLUMNS, CELL = 4, 200


def sentence(error: str) -> str:
    """Return why there is no answer."""
    return f'<p role="alert"><strong>{escape(error)}</strong></p>'


def figures(answer: Answer) -> str:
    """Return both answers, both times and the plan."""
    shown, (plain, merged) = answer.shown, answer.milliseconds
    notes = "".join(f"<p><em>{escape(note)}</em></p>" for note in answer.notes)
    return (
        f'<div class="answers">{_top(f"With merging, {merged:.1f} ms", answer, shown.merged_K)}'
        f"{_top(f'Without ({shown.twin}), {plain:.1f} ms', answer, shown.plain_K)}</div>"
        f"<p>{plain / merged:.2f} times as fast with {shown.plan.compute:.1%} of the multiply-adds: medians of "
        f"forwards of one clip, in turn, without reading it: {escape(answer.machine)}.</p>{notes}{_plan(answer)}"
    )


def overlay(answer: Answer) -> str:
    """Return the picture and the video of what merged, and the page to explore it, which has a frame of its own."""
    drawing = answer.shown.drawing
    picture = data_uri(merge_picture(drawing, columns=COLUMNS, cell=CELL))
    page = escape(explorer.page(drawing, ["Explore what merged"]), quote=True)
    return (
        f'<img alt="Frames of the clip, regions after each merger, paths" src="{picture}">'
        f'<video aria-label="The clip and its regions" controls loop muted playsinline src="{_video(answer)}"></video>'
        f'<iframe title="Explore what merged" sandbox="allow-scripts" srcdoc="{page}"></iframe>'
    )


def _video(answer: Answer) -> str:
    """Return the video that `sttm show` would write, as an address that holds all of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "overlay.mp4")
        write(answer.shown, path)
        return "data:video/mp4;base64," + b64encode(path.read_bytes()).decode()


def _plan(answer: Answer) -> str:
    """Return the plan as a list, which a narrow page can wrap."""
    head, _, _ = str(answer.shown.plan).partition("\n")
    lines = [answer.shown.drawing.caption(number) for number in range(len(answer.shown.plan.mergers))]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h3>Plan</h3><p>{escape(head)}</p><ul>{items}</ul>"


def _top(title: str, answer: Answer, scores_K: Tensor) -> str:
    rows = "".join(
        f"<tr><td>{escape(label)}</td><td>{score:.1%}</td></tr>" for label, score in answer.shown.best(scores_K, TOP)
    )
    return f"<div><h3>{escape(title)}</h3><table><tbody>{rows}</tbody></table></div>"
