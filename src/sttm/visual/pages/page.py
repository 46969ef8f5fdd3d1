"""The page that shows tables, what was run, and clips with their pictures; its template is page.html."""

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


@dataclass(frozen=True)
class Section:
    """One set of videos on the page: a sentence or two, a table, and clips."""

    title: str
    text: str
    header: Sequence[str]
    """Names of the columns; the first column is text, the others are figures."""
    rows: Sequence[Sequence[str]]
    examples: Sequence[Example]


def report(title: str, summary: str, sections: Sequence[Section], facts: Sequence[tuple[str, str]]) -> str:
    """Return a self-contained page of html: pictures and style are inside, and there is no script.

    Args:
        summary: the result in a sentence or two.
        sections: their tables come first, their clips at the end.
        facts: what was run and on what machine, as pairs of a name and a text.
    """
    return template("page.html").substitute(
        title=escape(title),
        summary=escape(summary),
        tables="".join(map(_table, sections)),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts),
        examples="".join(f"<h3>{escape(s.title)}</h3>" + "".join(map(_article, s.examples)) for s in sections),
    )


def template(name: str) -> Template:
    """Return a file of this folder, in which $name stands for what `substitute` gets, and $$ for a dollar sign."""
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _table(section: Section) -> str:
    """Return the html of the text and the table of a section."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in section.rows)
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>{escape(section.title)}</h2><p>{escape(section.text)}</p><div class="wide">{table}</div>'


def _article(example: Example) -> str:
    """Return the html of one clip."""
    lines = ""
    for prediction in example.predictions:
        verdict = "right" if prediction.right else "wrong"
        lines += f'<li class="{verdict}"><b>{escape(prediction.model)}</b> {escape(prediction.label)} '
        lines += f"<span>{verdict}, {100 * prediction.score:.0f} % sure</span></li>"
    label = escape(example.label)
    image = f'<img alt="{label}: frames, merged tokens, paths" src="{data_uri(example.picture)}">'
    return f'<article><h4>{label}</h4><ul>{lines}</ul><div class="wide">{image}</div></article>'


def data_uri(image: Image.Image) -> str:
    """Return a picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
