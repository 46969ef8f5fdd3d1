"""The page that shows tables, charts, what was run, and clips with their pictures; its template is page.html."""

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
    of_truth: float | None = None
    """The score of the true class, where that is to be told."""


@dataclass(frozen=True)
class Example:
    """One clip on the page, under its true label."""

    label: str
    picture: Image.Image
    predictions: Sequence[Prediction]
    group: str = ""
    """Under what heading it stands; examples of one group follow each other."""


@dataclass(frozen=True)
class Section:
    """One set of videos on the page: a sentence or two, a table, charts, and clips."""

    title: str
    text: str
    header: Sequence[str]
    """Names of the columns; the first column is text, the others are figures."""
    rows: Sequence[Sequence[str]]
    examples: Sequence[Example]
    charts: Sequence[str] = ()
    """Each a piece of html, such as `charts.accuracy_chart` returns."""


#: What stands above the clips.
ABOUT = """<h2>What merged with what</h2>
<p class="faint">Between its blocks, the merged model fuses tokens that look alike, in space and in time, and goes on
with fewer. Each token goes to exactly one slot; the tokens of one slot are a region with a line around it, in a colour
that it keeps from frame to frame where it can be linked. A token without colour is alone in its slot.
The method is our reading of the abstract of Feng, Xu, Ma and Zhang, ACM TOMM 20(4), 2023
(doi 10.1145/3633781), of which no code was released.</p>"""


def report(title: str, summary: str, sections: Sequence[Section], facts: Sequence[tuple[str, str]]) -> str:
    """Return a self-contained page of html: pictures and style are inside, and there is no script.

    Args:
        summary: the result in a sentence or two.
        sections: their tables come first, their clips at the end.
        facts: what was run and on what machine, as pairs of a name and a text.
    """
    examples = "".join(f"<h3>{escape(s.title)}</h3>{_articles(s.examples)}" for s in sections if s.examples)
    return template("page.html").substitute(
        style=template("style.css").template,
        title=escape(title),
        summary=escape(summary),
        tables="".join(map(_table, sections)),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts),
        examples=ABOUT + examples if examples else "",
    )


def template(name: str) -> Template:
    """Return a file of this folder, in which $name stands for what `substitute` gets, and $$ for a dollar sign."""
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _table(section: Section) -> str:
    """Return the html of the text, the table and the charts of a section; narrow pages show a row as a list."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
    rows = ""
    for row in section.rows:
        named = zip(section.header, row, strict=True)
        rows += (
            "<tr>" + "".join(f'<td data-name="{escape(name)}">{escape(cell)}</td>' for name, cell in named) + "</tr>"
        )
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    charts = "".join(f"<div>{chart}</div>" for chart in section.charts)
    shown = f'<div class="charts">{charts}</div>' if charts else ""
    return f"<h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>{table}{shown}"


def _articles(examples: Sequence[Example]) -> str:
    """Return the html of clips, a heading where a group begins."""
    html = ""
    for number, example in enumerate(examples):
        if example.group and (number == 0 or examples[number - 1].group != example.group):
            html += f"<p><b>{escape(example.group)}</b></p>"
        html += _article(example)
    return html


def _article(example: Example) -> str:
    """Return the html of one clip."""
    lines = ""
    for prediction in example.predictions:
        verdict = "right" if prediction.right else "wrong"
        lines += f'<li class="{verdict}"><b>{escape(prediction.model)}</b> {escape(prediction.label)} '
        truth = "" if prediction.of_truth is None else f"; {100 * prediction.of_truth:.0f} % for the true class"
        lines += f"<span>{verdict}, {100 * prediction.score:.0f} % sure{truth}</span></li>"
    label = escape(example.label)
    image = f'<img alt="{label}: frames, regions, paths" src="{data_uri(example.picture)}">'
    return f"<article><h4>{label}</h4><ul>{lines}</ul>{image}</article>"


def data_uri(image: Image.Image) -> str:
    """Return a picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
