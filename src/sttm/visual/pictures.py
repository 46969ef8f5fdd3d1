"""Pictures of what merged with what and of how it moved, and the page that shows them.

Legend: T frames or token frames, C = 3 colours, H x W a picture or a token grid, N tokens of a clip.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sttm.backbones.base import Grid
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap, compose, grid_positions

CELL = 160
"""Width of one frame in a picture, in pixels."""
COLUMNS = 8
"""Frames of one picture at most."""
PATHS = 3
"""Objects at most whose way is drawn."""
STILL, APART = 0.2, 0.4
"""A way shorter than the one is none, two ways closer than the other are one; a picture is 2 wide."""
GAP, CAPTION = 6, 26
BACKGROUND, INK, FAINT = (21, 24, 30), (236, 239, 244), (144, 153, 166)
PATH_COLOURS = ((255, 196, 0), (0, 214, 255), (255, 92, 160))


def merge_picture(frames_TCHW: Tensor, maps: list[MergeMap], grid: Grid, clip: int = 0) -> Image.Image:
    """Draw one clip in rows: its frames, the tokens that became one, and, where known, how objects moved.

    Tokens of one slot share their average colour through the whole window, and a line parts them from
    others; a token that was dropped is black. Ways are drawn for the few slots that moved farthest, step
    by step, as the first merger saw them: the centre of what resembles the slot, frame by frame.

    Args:
        frames_TCHW: the frames that the model saw, uint8; on them the token grid lies.
        maps: what `sttm.trace` collected in one forward, one map a merger.
        grid: the token grid of the model, before merging.
        clip: which clip of the forward's batch the frames are.

    Raises:
        SttmError: if the maps are none, or not of such a grid.
    """
    if not maps:
        raise SttmError("there is nothing to show: this model merges no tokens; apply a compute below 1")
    frames_THWC = frames_TCHW.permute(0, 2, 3, 1).cpu().numpy()
    slot_THW = slots(maps, grid, clip)
    if len(frames_THWC) % len(slot_THW):
        wrong = f"{len(frames_THWC)} frames are not those of {len(slot_THW)} token frames"
        raise SttmError(f"{wrong}; give the frames that the model saw")
    tubelet = len(frames_THWC) // len(slot_THW)
    shown = np.linspace(0, len(slot_THW) - 1, min(COLUMNS, len(slot_THW))).round().astype(int)
    size = (CELL, max(1, round(CELL * frames_THWC.shape[1] / frames_THWC.shape[2])))
    inputs = [Image.fromarray(frames_THWC[t * tubelet]).resize(size, Image.Resampling.LANCZOS) for t in shown]
    fused_THWC = _fused(frames_THWC, slot_THW)
    merged = [_outlined(fused_THWC[t], slot_THW[t], size) for t in shown]
    left = maps[-1].grid[1][0] * maps[-1].grid[1][1] * grid.sequences
    rows = [
        ("Input: one frame of each token frame", inputs),
        (f"Merged: {slot_THW.size} tokens became {left}; those that fuse share a colour", merged),
    ]
    path_KT2 = _paths(maps[0], grid, clip)
    if len(path_KT2):
        pixels_KT2 = _in_pixels(path_KT2, grid, size)
        followed = [_with_paths(picture, pixels_KT2, t) for t, picture in zip(shown, inputs, strict=True)]
        rows.append(
            (
                "Followed: where the first merger sees the tokens that move farthest",
                followed,
            )
        )
    return _sheet(rows)


def slots(maps: list[MergeMap], grid: Grid, clip: int = 0) -> NDArray[np.int64]:
    """The final slot of every token of the input grid [T H W]; -1 where it was dropped.

    Raises:
        SttmError: if the maps are not of such a grid.
    """
    whole = compose(maps)
    (frames, tokens), (frames_out, tokens_out) = whole.grid
    if tokens != grid.tokens or frames != grid.frames:
        wrong = f"{frames} x {tokens} tokens and not of {grid.frames} x {grid.height} x {grid.width}"
        raise SttmError(f"the maps are of {wrong}; give the grid of the model that was traced")
    # A family that runs its frames one by one has a row of its own for each of them.
    rows_RN = whole.assignment[clip * grid.sequences : (clip + 1) * grid.sequences].cpu()
    first_R1 = torch.arange(len(rows_RN))[:, None] * frames_out * tokens_out
    slot_RN = torch.where(rows_RN < 0, -1, rows_RN + first_R1)
    return slot_RN.reshape(-1, grid.height, grid.width).numpy()


def restore(pixels_TCHW: Tensor, mean: Sequence[float], std: Sequence[float], factor: float, offset: float) -> Tensor:
    """From a model's pixels back to uint8 frames: undoes rescaling by `factor`, `offset`, and normalising."""
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (mean, std))
    levels_TCHW = (pixels_TCHW.cpu() * std_C11 + mean_C11 - offset) / factor
    return levels_TCHW.round().clamp(0, 255).to(torch.uint8)


def _fused(frames_THWC: NDArray[np.uint8], slot_THW: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Every token in the average colour of its slot [T H W C]."""
    T, H, W = slot_THW.shape
    patches = torch.from_numpy(frames_THWC.copy()).float().permute(3, 0, 1, 2)[None]
    colour_CTHW = torch.nn.functional.adaptive_avg_pool3d(patches, (T, H, W))[0]
    colour_NC = colour_CTHW.flatten(1).T.numpy()
    slot_N = slot_THW.reshape(-1) + 1  # 0: dropped
    sum_SC = np.stack([np.bincount(slot_N, weights=channel) for channel in colour_NC.T], axis=1)
    mean_SC = sum_SC / np.maximum(np.bincount(slot_N), 1)[:, None]
    mean_SC[0] = 0
    return mean_SC[slot_N].round().astype(np.uint8).reshape(T, H, W, 3)


def _outlined(colour_HWC: NDArray[np.uint8], slot_HW: NDArray[np.int64], size: tuple[int, int]) -> Image.Image:
    """One token frame, enlarged, with a line wherever two neighbours went to different slots."""
    H, W = slot_HW.shape
    image = Image.fromarray(colour_HWC).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    xs, ys = np.linspace(0, size[0], W + 1).round(), np.linspace(0, size[1], H + 1).round()
    line = (198, 204, 214)
    for y, x in zip(*np.nonzero(slot_HW[:, 1:] != slot_HW[:, :-1]), strict=True):
        draw.line((xs[x + 1], ys[y], xs[x + 1], ys[y + 1]), fill=line)
    for y, x in zip(*np.nonzero(slot_HW[1:] != slot_HW[:-1]), strict=True):
        draw.line((xs[x], ys[y + 1], xs[x + 1], ys[y + 1]), fill=line)
    return image


def _paths(first: MergeMap, grid: Grid, clip: int) -> NDArray[np.float64]:
    """Where the few slots that moved most were in every token frame, (y, x) in [-1, 1]: [K T 2]."""
    if first.trajectory is None or first.meta is None or grid.sequences > 1:
        return np.empty((0, grid.frames, 2))
    place_N3 = grid_positions(grid.frames, grid.height, grid.width).flatten(0, 1)
    path_OT2 = (first.trajectory[clip].cpu() + place_N3[first.meta[clip].cpu(), None, 1:]).double().numpy()
    reach_O = np.linalg.norm(np.ptp(path_OT2, axis=1), axis=-1)
    leap_O = np.linalg.norm(np.diff(path_OT2, axis=1), axis=-1).max(1, initial=0)
    # Far, but step by step: a token that sees its likeness leap from place to place follows no object.
    travel_O = reach_O - 1.5 * leap_O
    chosen: list[int] = []
    for slot in np.argsort(-travel_O, kind="stable"):
        if len(chosen) == PATHS or travel_O[slot] < STILL:
            break
        # Slots on one object tell one story: its way is drawn once.
        if all(np.linalg.norm(path_OT2[slot] - path_OT2[other], axis=-1).mean() > APART for other in chosen):
            chosen.append(int(slot))
    return path_OT2[chosen]


def _in_pixels(place_KT2: NDArray[np.float64], grid: Grid, size: tuple[int, int]) -> NDArray[np.float64]:
    """From (y, x) in [-1, 1], where the outer tokens' middles are, to (x, y) in a picture of `size`."""
    counts, lengths = np.array([grid.height, grid.width]), np.array(size[::-1])
    token = (place_KT2 + 1) / 2 * (counts - 1) + 0.5
    return (token / counts * lengths)[..., ::-1]


def _with_paths(picture: Image.Image, path_KT2: NDArray[np.float64], now: int) -> Image.Image:
    """A frame, dimmed, with each way so far and a dot where it is now."""
    scale = 3  # drawn larger and made smaller again: smooth lines
    pale = Image.blend(picture.convert("L").convert("RGB"), picture, 0.5)
    image = Image.blend(pale, Image.new("RGB", picture.size), 0.4).resize(
        (picture.width * scale, picture.height * scale)
    )
    draw = ImageDraw.Draw(image)
    for path_T2, colour in zip(path_KT2 * scale, PATH_COLOURS, strict=False):
        past = [tuple(point) for point in path_T2[: now + 1]]
        if len(past) > 1:
            draw.line(past, fill=colour, width=2 * scale, joint="curve")
        draw.circle(past[-1], 4.5 * scale, fill=colour, outline=(0, 0, 0), width=scale)
    return image.resize(picture.size, Image.Resampling.LANCZOS)


def _sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of equal pictures, each under its caption."""
    (width, height), columns = rows[0][1][0].size, len(rows[0][1])
    step = CAPTION + height + GAP
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * step + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (caption, pictures) in enumerate(rows):
        name, _, rest = caption.partition(": ")
        top = row * step
        draw.text((GAP, top + 5), name, fill=INK, font=font)
        draw.text((GAP + draw.textlength(name + "  ", font=font), top + 5), rest, fill=FAINT, font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + column * (width + GAP), top + CAPTION))
    return sheet


# --- the page -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guess:
    """What one model says of a clip."""

    model: str
    label: str
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """One clip on the page, under its true label."""

    label: str
    picture: Image.Image
    guesses: Sequence[Guess]


def report(
    title: str,
    summary: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    facts: Sequence[tuple[str, str]],
    examples: Sequence[Example],
) -> str:
    """One page of html that needs nothing beside itself: pictures and style are inside, and no script.

    Args:
        summary: what came out, in a sentence or two.
        header, rows: the table; the first column is text, the others are figures.
        facts: what was run and on what, as pairs of a name and a text.
    """
    return _PAGE.substitute(
        title=escape(title),
        summary=escape(summary),
        header="".join(f"<th>{escape(cell)}</th>" for cell in header),
        rows="".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts),
        examples="".join(map(_article, examples)),
    )


def _article(example: Example) -> str:
    lines = ""
    for guess in example.guesses:
        verdict = "right" if guess.right else "wrong"
        lines += f'<li class="{verdict}"><b>{escape(guess.model)}</b> {escape(guess.label)} '
        lines += f"<span>{verdict}, {100 * guess.score:.0f} % sure</span></li>"
    label = escape(example.label)
    image = f'<img alt="{label}: frames, merged tokens, ways" src="{_data_uri(example.picture)}">'
    return f'<article><h3>{label}</h3><ul>{lines}</ul><div class="wide">{image}</div></article>'


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f27; --faint: #5b6472; --line: #d9dee6; --page: #fbfcfd;
  --card: #fff; --right: #14773b; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --faint: #9aa4b2; --line: #313844;
  --page: #12151a; --card: #191d24; --right: #6dd58c; --wrong: #ff8a80; } }
body { margin: 0 auto; max-width: 1400px; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1.05rem; margin: 0; } p { max-width: 75ch; } .faint { color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--faint); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
  margin: 0 0 1rem; }
ul { list-style: none; margin: .35rem 0 .75rem; padding: 0; } li span { font-size: .9rem; }
.right span { color: var(--right); } .wrong span { color: var(--wrong); }
img { display: block; width: 100%; min-width: 760px; height: auto; border-radius: 6px; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
<div class="wide"><table><thead><tr>$header</tr></thead><tbody>$rows</tbody></table></div>
<h2>What was run</h2>
<dl>$facts</dl>
<h2>What merged with what</h2>
<p class="faint">Between its blocks, the merged model fuses tokens that look like one object, in space and in
time, and goes on with fewer. A token may give parts of itself to several; it is drawn with the one that took
most, in the average colour of all that went there. The method is our reading of the abstract of Feng, Xu, Ma
and Zhang, ACM TOMM 20(4), 2023 (doi 10.1145/3633781), of which no code was released.</p>
$examples
</body>
</html>
""")
