"""Pictures of which tokens merged and of the paths of their slots.

Legend: T frames or token frames, C = 3 colours, H x W a picture or a token grid, N tokens of a clip.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sttm.backbones.base import Grid
from sttm.data.transforms.preprocess import Preprocess
from sttm.errors import SttmError
from sttm.merging.tokens import MergeMap, compose, grid_positions

CELL = 160
"""Width of one frame in a picture, in pixels."""
COLUMNS = 8
"""Frames of one picture at most."""
PATHS = 3
"""Paths that are drawn at most."""
STILL, APART = 0.2, 0.4
"""Paths shorter than `STILL` are not drawn, nor a second path closer than `APART`; a picture is 2 wide."""
GAP, CAPTION = 6, 26
BACKGROUND, INK, FAINT = (21, 24, 30), (236, 239, 244), (144, 153, 166)
PATH_COLOURS = ((255, 196, 0), (0, 214, 255), (255, 92, 160))


def merge_picture(frames_TCHW: Tensor, maps: list[MergeMap], grid: Grid, clip: int = 0) -> Image.Image:
    """Draw one clip in rows: its frames, its merged tokens, and, where the merger knows them, paths of slots.

    Tokens of one slot have their average colour in all frames of the window, with a line around them; a dropped
    token is black. Paths are drawn for the few slots of the first merger that moved farthest without leaps: in each
    frame, the centre of the tokens that resemble the slot.

    Args:
        frames_TCHW: the frames that the model saw, uint8; on them the token grid lies.
        maps: what `sttm.trace` collected in one forward, one map a merger.
        grid: the token grid of the model, before merging.
        clip: the index of the frames' clip in the batch of that forward.

    Raises:
        SttmError: if there are no maps, or maps of another grid.
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
        (f"Merged: {slot_THW.size} tokens became {left}; those of one slot share a colour", merged),
    ]
    path_KT2 = _paths(maps[0], grid, clip)
    if len(path_KT2):
        pixels_KT2 = _in_pixels(path_KT2, grid, size)
        followed = [_with_paths(picture, pixels_KT2, t) for t, picture in zip(shown, inputs, strict=True)]
        rows.append(("Paths: where the first merger finds the slots that move farthest", followed))
    return _sheet(rows)


def slots(maps: list[MergeMap], grid: Grid, clip: int = 0) -> NDArray[np.int64]:
    """Return the final slot of every token of the input grid [T H W]; -1 where it was dropped.

    Raises:
        SttmError: if the maps are of another grid.
    """
    whole = compose(maps)
    (frames, tokens), (frames_out, tokens_out) = whole.grid
    if tokens != grid.tokens or frames != grid.frames:
        wrong = f"{frames} x {tokens} tokens and not of {grid.frames} x {grid.height} x {grid.width}"
        raise SttmError(f"the maps are of {wrong}; give the grid of the model that was traced")
    # A family that runs its frames one by one has a row of the batch for each of them.
    rows_RN = whole.assignment[clip * grid.sequences : (clip + 1) * grid.sequences].cpu()
    first_R1 = torch.arange(len(rows_RN))[:, None] * frames_out * tokens_out
    slot_RN = torch.where(rows_RN < 0, -1, rows_RN + first_R1)
    return slot_RN.reshape(-1, grid.height, grid.width).numpy()


def restore(pixels_TCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the uint8 frames of a model's pixels: undo rescaling, offset and normalisation."""
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    levels_TCHW = (pixels_TCHW.cpu() * std_C11 + mean_C11 - preprocess.offset) / preprocess.rescale_factor
    return levels_TCHW.round().clamp(0, 255).to(torch.uint8)


def _fused(frames_THWC: NDArray[np.uint8], slot_THW: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return every token in the average colour of its slot [T H W C]."""
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
    """Return one token frame, enlarged, with a line between neighbours of different slots."""
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
    """Return the positions of the slots that moved most in every token frame, (y, x) in [-1, 1]: [K T 2]."""
    if first.trajectory is None or first.meta is None or grid.sequences > 1:
        return np.empty((0, grid.frames, 2))
    position_N3 = grid_positions(grid.frames, grid.height, grid.width).flatten(0, 1)
    path_OT2 = (first.trajectory[clip].cpu() + position_N3[first.meta[clip].cpu(), None, 1:]).double().numpy()
    reach_O = np.linalg.norm(np.ptp(path_OT2, axis=1), axis=-1)
    leap_O = np.linalg.norm(np.diff(path_OT2, axis=1), axis=-1).max(1, initial=0)
    # Far, but without leaps: a path that leaps between tokens that look alike follows no object.
    travel_O = reach_O - 1.5 * leap_O
    chosen: list[int] = []
    for slot in np.argsort(-travel_O, kind="stable"):
        if len(chosen) == PATHS or travel_O[slot] < STILL:
            break
        # Slots on one object have nearly the same path: it is drawn once.
        if all(np.linalg.norm(path_OT2[slot] - path_OT2[other], axis=-1).mean() > APART for other in chosen):
            chosen.append(int(slot))
    return path_OT2[chosen]


def _in_pixels(path_KT2: NDArray[np.float64], grid: Grid, size: tuple[int, int]) -> NDArray[np.float64]:
    """Convert (y, x) in [-1, 1], the centres of the outer tokens, to (x, y) in a picture of `size`."""
    counts, lengths = np.array([grid.height, grid.width]), np.array(size[::-1])
    token = (path_KT2 + 1) / 2 * (counts - 1) + 0.5
    return (token / counts * lengths)[..., ::-1]


def _with_paths(picture: Image.Image, path_KT2: NDArray[np.float64], now: int) -> Image.Image:
    """Return a frame, dimmed, with each path up to it and a dot at its end."""
    scale = 3  # drawn larger and then reduced: smooth lines
    pale = Image.blend(picture.convert("L").convert("RGB"), picture, 0.5)
    dimmed = Image.blend(pale, Image.new("RGB", picture.size), 0.4)
    image = dimmed.resize((picture.width * scale, picture.height * scale))
    draw = ImageDraw.Draw(image)
    for path_T2, colour in zip(path_KT2 * scale, PATH_COLOURS, strict=False):
        past = [tuple(point) for point in path_T2[: now + 1]]
        if len(past) > 1:
            draw.line(past, fill=colour, width=2 * scale, joint="curve")
        draw.circle(past[-1], 4.5 * scale, fill=colour, outline=(0, 0, 0), width=scale)
    return image.resize(picture.size, Image.Resampling.LANCZOS)


def _sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Return rows of equal pictures, each row under its caption."""
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
