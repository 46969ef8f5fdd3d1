"""Pictures of which tokens merged: the frames that the model saw, under the regions of each merger.

Legend: T frames or token frames, C = 3 colours, H x W a picture or a token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sttm.backbones.base import Grid
from sttm.data.transforms.preprocess import Preprocess
from sttm.merging.tokens import MergeMap
from sttm.visual.paths import in_tokens, paths
from sttm.visual.regions import PALETTE, Ints, Stage, stages

Frames = NDArray[np.uint8]

CELL = 160
"""Width of one frame in a picture, in pixels."""
COLUMNS = 8
"""Frames of one picture at most."""
PANELS = 4
"""Frames side by side in a video at most: the input and some mergers."""
TINT, PALE = 0.5, 0.6
"""How much of its colour a region has, the rest is the frame; and how grey the frame is under it."""
GAP, LINE = 6, 24
BACKGROUND, INK, FAINT = (21, 24, 30), (236, 239, 244), (160, 169, 182)
ALONE = -2
"""In place of the slot of a token that is alone in it: no line parts two of these."""
BORDER, SHADOW = (255, 255, 255), (0, 0, 0)
PATH_COLOURS = ((255, 255, 255), (255, 221, 85), (127, 219, 255))


@dataclass(frozen=True)
class Drawing:
    """One clip and what its mergers made of it, ready to be drawn."""

    frames_TCHW: Tensor
    """The frames that the model saw, uint8; on them the token grid lies."""
    maps: list[MergeMap]
    """What `sttm.trace` collected in one forward, one map a merger."""
    grid: Grid
    """The token grid of the model, before merging."""
    places: Sequence[str] = ()
    """Where each merger is, such as "before block 3"."""
    clip: int = 0
    """The index of the frames' clip in the batch of that forward."""

    @cached_property
    def stages(self) -> list[Stage]:
        """Return the regions after each merger; raise SttmError for maps or frames that do not belong here."""
        return stages(self.maps, self.grid, self.frames_TCHW, self.clip)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """Return the frames as pictures."""
        return [Image.fromarray(frame_HWC) for frame_HWC in self.frames_TCHW.permute(0, 2, 3, 1).cpu().numpy()]

    @cached_property
    def paths(self) -> tuple[NDArray[np.float64], str]:
        """Return the paths of what moves most, in tokens from the corner, and what they are; see `paths.paths`."""
        path_KT2, what = paths(self.maps[0], self.stages[-1], self.grid, self.clip)
        return in_tokens(path_KT2, self.grid), what

    @property
    def tubelet(self) -> int:
        """Return how many frames a token frame stands for."""
        return len(self.pictures) // len(self.stages[0].slot_THW)

    def caption(self, number: int) -> str:
        """Return the line above a merger: where it is, and how many tokens go on."""
        stage, before = self.stages[number], self.stages[0].slot_THW.size
        came = before if number == 0 else self.stages[number - 1].slots
        place = f", {self.places[number]}" if self.places else ""
        share = f"{stage.slots / before:.0%} of all"
        return f"Merger {number + 1} of {len(self.stages)}{place}: {came:,} tokens became {stage.slots:,}, {share}"


def merge_picture(
    drawing: Drawing, header: Sequence[str] = (), *, columns: int = COLUMNS, cell: int = CELL
) -> Image.Image:
    """Draw one clip in rows: its frames, its regions after each merger, and the paths of the few that move most.

    Tokens of one slot are a region with a line around it, in a colour that stays with the region from frame to frame
    and from merger to merger, where the two can be linked; a token that is alone in its slot has no colour, a dropped
    one is crossed out.

    Args:
        header: lines above the frames.
        columns: frames side by side at most.
        cell: width of one frame in pixels.
    """
    count = len(drawing.stages[0].slot_THW)
    shown = np.linspace(0, count - 1, min(columns, count)).round().astype(int).tolist()
    size = _size(drawing, cell)
    inputs = [_resized(drawing.pictures[t * drawing.tubelet], size) for t in shown]
    rows = [("Input: the frames as the model saw them, one of each token frame", inputs)]
    for number, stage in enumerate(drawing.stages):
        drawn = [with_regions(picture, stage, t) for t, picture in zip(shown, inputs, strict=True)]
        rows.append((drawing.caption(number), drawn))
    if len(drawing.paths[0]):
        followed = [_with_paths(picture, drawing, t) for t, picture in zip(shown, inputs, strict=True)]
        rows.append((f"Paths: {drawing.paths[1]}", followed))
    return _sheet(rows, header)


def merge_video(drawing: Drawing, header: Sequence[str] = (), *, cell: int = 2 * CELL) -> list[Image.Image]:
    """Draw each frame of a clip beside its regions after some mergers, the paths up to then on the last."""
    count = min(PANELS - 1, len(drawing.stages))
    chosen = sorted({round(n) for n in np.linspace(len(drawing.stages) - 1, 0, count)})
    size, sheets = _size(drawing, cell), []
    for number, picture in enumerate(drawing.pictures):
        t, frame = number // drawing.tubelet, _resized(picture, size)
        regions = [with_regions(frame, drawing.stages[n], t) for n in chosen]
        if len(drawing.paths[0]):
            regions[-1] = _with_paths(regions[-1], drawing, t, dimmed=False)
        names = ["Input"] + [drawing.caption(n).partition(": ")[0].partition(",")[0] for n in chosen]
        tokens = [drawing.stages[0].slot_THW.size, *(drawing.stages[n].slots for n in chosen)]
        labels = [f"{name}: {left:,} tokens" for name, left in zip(names, tokens, strict=True)]
        sheets.append(_sheet([(labels, [frame, *regions])], header))
    return sheets


def restore(pixels_TCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the uint8 frames of a model's pixels: undo rescaling, offset and normalisation."""
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    levels_TCHW = (pixels_TCHW.cpu() * std_C11 + mean_C11 - preprocess.offset) / preprocess.rescale_factor
    return levels_TCHW.round().clamp(0, 255).to(torch.uint8)


def with_regions(picture: Image.Image, stage: Stage, t: int) -> Image.Image:
    """Return a frame with the regions of a token frame: tinted, outlined, dropped tokens dark and crossed out."""
    slot_HW, colour_HW = stage.slot_THW[t], stage.colours[t]
    xs, ys = _edges(picture.width, slot_HW.shape[1]), _edges(picture.height, slot_HW.shape[0])
    row_H, column_W = (np.repeat(np.arange(len(edge) - 1), np.diff(edge)) for edge in (ys, xs))
    colour_HWC = np.array([*PALETTE, (0, 0, 0)], float)[colour_HW][row_H][:, column_W]
    share_HW = np.where(slot_HW < 0, 0.7, np.where(colour_HW < 0, 0.0, TINT))[row_H][:, column_W, None]
    grey_HWC = np.asarray(picture.convert("L").convert("RGB"), float)
    pale_HWC = np.asarray(picture) + np.where(share_HW > 0, PALE, 0) * (grey_HWC - np.asarray(picture))
    tinted_HWC = pale_HWC * (1 - share_HW) + colour_HWC * share_HW
    image = Image.fromarray(tinted_HWC.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for y, x in zip(*np.nonzero(slot_HW < 0), strict=True):
        draw.line((xs[x] + 2, ys[y] + 2, xs[x + 1] - 3, ys[y + 1] - 3), fill=FAINT)
    _outline(draw, np.where((slot_HW >= 0) & (colour_HW < 0), ALONE, slot_HW), xs, ys)
    return image


def _outline(draw: ImageDraw.ImageDraw, slot_HW: Ints, xs: list[int], ys: list[int]) -> None:
    """Draw a white line between neighbours of different slots, with a black one beside it where tokens are large."""
    thick = xs[1] - xs[0] >= 16
    for offset, colour in ((1, SHADOW), (0, BORDER)) if thick else ((0, BORDER),):
        for y, x in zip(*np.nonzero(slot_HW[:, 1:] != slot_HW[:, :-1]), strict=True):
            at = xs[x + 1] + offset
            draw.line((at, ys[y], at, ys[y + 1]), fill=colour)
        for y, x in zip(*np.nonzero(slot_HW[1:] != slot_HW[:-1]), strict=True):
            at = ys[y + 1] + offset
            draw.line((xs[x], at, xs[x + 1], at), fill=colour)


def _with_paths(picture: Image.Image, drawing: Drawing, now: int, *, dimmed: bool = True) -> Image.Image:
    """Return a frame with each path up to it, black beneath its colour, and a numbered dot at its end."""
    scale = 3  # drawn larger and then reduced: smooth lines
    grid_2 = np.array([drawing.grid.width, drawing.grid.height])
    pixels_KT2 = drawing.paths[0][..., ::-1] / grid_2 * np.array(picture.size) * scale
    if dimmed:
        pale = Image.blend(picture.convert("L").convert("RGB"), picture, 0.5)
        picture = Image.blend(pale, Image.new("RGB", picture.size), 0.4)
    image = picture.resize((picture.width * scale, picture.height * scale))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(10 * scale)
    for number, (path_T2, colour) in enumerate(zip(pixels_KT2, PATH_COLOURS, strict=False)):
        past = [tuple(point) for point in path_T2[: now + 1]]
        for fill, width in ((SHADOW, 4), (colour, 2)):
            if len(past) > 1:
                draw.line(past, fill=fill, width=width * scale, joint="curve")
        draw.circle(past[-1], 6 * scale, fill=colour, outline=SHADOW, width=scale)
        draw.text(past[-1], str(number + 1), fill=SHADOW, font=font, anchor="mm")
    return image.resize(picture.size, Image.Resampling.LANCZOS)


def _size(drawing: Drawing, cell: int) -> tuple[int, int]:
    """Return width and height of a frame that is drawn `cell` wide; both even, as codecs need them."""
    height, width = drawing.frames_TCHW.shape[-2:]
    return cell, max(2, 2 * round(cell * height / width / 2))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.LANCZOS)


def _edges(length: int, tokens: int) -> list[int]:
    """Return the pixels where tokens begin and end."""
    return [round(number * length / tokens) for number in range(tokens + 1)]


def _sheet(rows: Sequence[tuple[str | list[str], list[Image.Image]]], header: Sequence[str]) -> Image.Image:
    """Return rows of equal pictures under their captions, one for the row or one for each picture."""
    (width, height), columns = rows[0][1][0].size, len(rows[0][1])
    top, step = GAP + len(header) * LINE, LINE + height + GAP
    full = columns * (width + GAP) + GAP
    sheet = Image.new("RGB", (full, (top + len(rows) * step + 1) // 2 * 2), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, line in enumerate(header):
        draw.text((GAP, GAP + number * LINE), _fitted(draw, line, font, full - 2 * GAP), fill=INK, font=font)
    for row, (caption, pictures) in enumerate(rows):
        y = top + row * step
        captions = [caption] if isinstance(caption, str) else caption
        for column, text in enumerate(captions):
            x, room = GAP + column * (width + GAP), full - 2 * GAP if isinstance(caption, str) else width
            name, colon, rest = _fitted(draw, text, font, room).partition(":")
            draw.text((x, y), name + colon, fill=INK, font=font)
            draw.text((x + draw.textlength(name + colon, font=font), y), rest, fill=FAINT, font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + column * (width + GAP), y + LINE))
    return sheet


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """Return a line cut to a width in pixels."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(f"{text}...", font=font) > room:
        text = text[:-1]
    return f"{text}..."
