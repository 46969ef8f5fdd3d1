"""The page that shows a table, what was run, and clips with their pictures; its template is page.html."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image


@dataclass(frozen=True)
class Prediction:
    """The class that one model gives a clip."""

    model: str
    label: str
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """One clip on the page, under its true label."""

    label: str
    picture: Image.Image
    predictions: Sequence[Prediction]


def report(
    title: str,
    summary: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    facts: Sequence[tuple[str, str]],
    examples: Sequence[Example],
) -> str:
    """Return a self-contained page of html: pictures and style are inside, and there is no script.

    Args:
        summary: the result in a sentence or two.
        header, rows: the table; the first column is text, the others are figures.
        facts: what was run and on what machine, as pairs of a name and a text.
    """
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        summary=escape(summary),
        header="".join(f"<th>{escape(cell)}</th>" for cell in header),
        rows="".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts),
        examples="".join(map(_article, examples)),
    )


def _article(example: Example) -> str:
    """Return the html of one clip."""
    lines = ""
    for prediction in example.predictions:
        verdict = "right" if prediction.right else "wrong"
        lines += f'<li class="{verdict}"><b>{escape(prediction.model)}</b> {escape(prediction.label)} '
        lines += f"<span>{verdict}, {100 * prediction.score:.0f} % sure</span></li>"
    label = escape(example.label)
    image = f'<img alt="{label}: frames, merged tokens, paths" src="{_data_uri(example.picture)}">'
    return f'<article><h3>{label}</h3><ul>{lines}</ul><div class="wide">{image}</div></article>'


def _data_uri(image: Image.Image) -> str:
    """Return a picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
