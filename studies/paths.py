"""Do the paths of the merger follow what moves? Against known tracks on made clips, against what moves on real ones.

Made clips (*motion*, validation): slots of the first merger that grew from a token on the target are compared with the
target's true track, frame by frame, beside a path that stays where its slot is. Real clips (UT-Interaction, a camera
that stands still): what moves is what differs from the clip's median picture; counted is how often a point of a path
lies on it, for slots that grew from a token on it, beside the slot's own place in that frame and any place at all.

How to run, from the project's root, with the data in STTM_DATA or ../shared/data (two minutes on one core):
    python studies/paths.py

Legend: B clips, T token frames, R slots of a clip, S tokens in a frame; 2 = (y, x) in half pictures from the centre.
"""

from __future__ import annotations

import argparse
import csv
import json
from typing import Any

import numpy as np
import torch
from harness.data import data_root
from harness.runs import RESULTS, commit
from harness.synthetic import synthetic_set
from harness.tables import markdown, show_in_docs
from torch import Tensor

import sttm
from sttm.devices import machine
from sttm.models import load_with_preprocess
from sttm.visual.show import read_clip

FOLDER = RESULTS / "paths"
MODEL, FRAMES, TUBELET, SIDE = "sttm-motion", 16, 2, 8
COUNT = 600
#: A target that stays within this, in half pictures, does not move.
MOVES = 0.1
#: A token moves if it differs from the clip's median picture by so many times what tokens of the clip do in the median.
STANDS_OUT = 4.0


@torch.inference_mode()
def paths_of(model: Any, pixels_BT3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paths of the first merger's slots [B R T 2], and the frame and the place of their meta tokens."""
    with sttm.trace(model) as maps:
        model(pixels_BT3HW)
    first = maps[0]
    assert first.trajectory is not None and first.meta is not None
    path_BRT2 = first.trajectory + first.position[..., None, 1:]
    frame_BR, token_BR = first.meta // SIDE**2, first.meta % SIDE**2
    place_BR2 = torch.stack((token_BR // SIDE, token_BR % SIDE), dim=-1)
    # Positions of tokens reach from -1 to 1 at the centres of the outer tokens; the picture is one token wider.
    return path_BRT2 * (1 - 1 / SIDE), frame_BR, (2 * place_BR2 + 1) / SIDE - 1


def on_made_clips(model: Any) -> dict[str, Any]:
    """Compare the paths that start on the target with its track."""
    clips = synthetic_set("motion", "validation", 64, COUNT, "positions")
    found: list[Tensor] = []
    told: list[Tensor] = []
    own: list[Tensor] = []
    for start in range(0, COUNT, 50):
        indices = np.arange(start, start + 50)
        path_BRT2, frame_BR, place_BR2 = paths_of(model, clips.clips(indices, FRAMES))
        # [B 16 11] -> (y, x) of the target, the mean of a token's two frames
        track_BT2 = clips.targets["tracks"][indices][..., [1, 0]].unflatten(1, (-1, TUBELET)).mean(2)
        moves_B = (track_BT2.amax(1) - track_BT2.amin(1)).amax(-1) > MOVES
        at_BR2 = track_BT2.gather(1, frame_BR[..., None].expand(-1, -1, 2))
        starts_BR = ((at_BR2 - place_BR2).abs().amax(-1) < 1 / SIDE) & moves_B[:, None]
        for b, r in starts_BR.nonzero().tolist():
            found.append(path_BRT2[b, r])
            told.append(track_BT2[b])
            own.append(place_BR2[b, r].expand(len(track_BT2[b]), 2))
    path_RT2, track_RT2, own_RT2 = (torch.stack(parts) for parts in (found, told, own))
    moved, true = ((points - points.mean(1, keepdim=True)).flatten() for points in (path_RT2, track_RT2))
    return {
        "slots": len(found),
        "correlation": round(float((moved * true).sum() / (moved.norm() * true.norm())), 3),
        "error": round(float((path_RT2 - track_RT2).norm(dim=-1).median()), 3),
        "error_if_still": round(float((own_RT2 - track_RT2).norm(dim=-1).median()), 3),
    }


def moving(pixels_T3HW: Tensor) -> Tensor:
    """Return which tokens differ from the median picture of their clip: [T S] in 0 and 1."""
    grey_THW = pixels_T3HW.mean(1)
    apart_THW = (grey_THW - grey_THW.median(0).values).abs()
    # [16 H W] -> [T 8 8] -> [T S]
    apart_T88 = torch.nn.functional.avg_pool3d(
        apart_THW[None, None], (TUBELET, apart_THW.shape[1] // SIDE, apart_THW.shape[2] // SIDE)
    )[0, 0]
    apart_TS = apart_T88.flatten(1)
    return (apart_TS > STANDS_OUT * apart_TS.median()).float()


def on_real_clips(model: Any, preprocess: Any) -> dict[str, Any]:
    """Count how often the paths that start on what moves lie on what moves."""
    root = data_root() / "ut-interaction"
    with (root / "annotations.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["view"] == "scene" and row["split"] == "test"]
    names = [row["path"] for row in rows if row["label"] != "other"]
    points: dict[str, list[Tensor]] = {"path": [], "own place": [], "any place": []}
    for name in names:
        sample = read_clip(root / name, preprocess)
        assert sample.pixels_VTCHW is not None
        (path_RT2,), (frame_R,), (place_R2,) = paths_of(model, sample.pixels_VTCHW[:1])
        moves_TS = moving(sample.pixels_VTCHW[0])
        own_R = ((place_R2 + 1) * SIDE / 2).long() @ torch.tensor([SIDE, 1])
        starts_R = moves_TS[frame_R, own_R] > 0
        cell_RT2 = ((path_RT2[starts_R] + 1) * SIDE / 2).long().clamp(0, SIDE - 1)
        cell_RT = cell_RT2 @ torch.tensor([SIDE, 1])
        # Only frames in which the object has had time to go: not those of the slot's own window.
        other_RT = torch.arange(len(moves_TS)) // 2 != frame_R[starts_R, None] // 2
        points["path"].append(moves_TS[torch.arange(len(moves_TS)).expand_as(cell_RT), cell_RT][other_RT])
        points["own place"].append(moves_TS.T[own_R[starts_R]][other_RT])
        points["any place"].append(moves_TS.mean(1).expand_as(cell_RT)[other_RT])
    shares = {key: round(float(torch.cat(parts).mean()), 3) for key, parts in points.items()}
    return {"clips": len(names), "points": len(torch.cat(points["path"])), **shares}


def table_of(measured: dict[str, Any]) -> str:
    """Return the two tables."""
    made, real = measured["made"], measured["real"]
    heads = ("made clips", "slots on the target", "correlation with the track", "median error", "of a path that stays")
    errors = (f"{made['error']:.2f}", f"{made['error_if_still']:.2f}")
    tables = [markdown(heads, [("motion", f"{made['slots']:,}", f"{made['correlation']:.2f}", *errors)])]
    heads = ("real clips", "points", "of a path, on what moves", "of the slot's own place", "of any place")
    shares = (f"{100 * real[key]:.0f} %" for key in ("path", "own place", "any place"))
    tables.append(markdown(heads, [(f"UT-Interaction, {real['clips']}", f"{real['points']:,}", *shares)]))
    told = f"`python studies/paths.py`, `{MODEL}`, its first merger, {measured['machine']}. Errors in half pictures."
    return "\n\n".join([told, *tables]) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    model, preprocess = load_with_preprocess(MODEL)
    measured: dict[str, Any] = {"commit": commit(), "machine": machine(torch.device("cpu"))}
    measured |= {"made": on_made_clips(model.eval()), "real": on_real_clips(model, preprocess)}
    print(json.dumps(measured, indent=1))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "figures.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "table.md").write_text(table_of(measured), encoding="utf-8")
    show_in_docs(FOLDER / "table.md")


if __name__ == "__main__":
    main()
