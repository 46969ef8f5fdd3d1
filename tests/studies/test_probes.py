"""The studies that look into the merger: the position's part, and paths against what moves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sttm.models import load_with_preprocess

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["positions", "paths"])
def test_tables_are_those_of_the_figures(study: Any, name: str) -> None:
    folder = ROOT / "results" / name
    measured = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    told = (measured["rows"], measured["machine"]) if name == "positions" else (measured,)
    table = study(name).table_of(*told)
    assert table == (folder / "table.md").read_text(encoding="utf-8")
    assert table in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_tokens_are_compared_less_their_positions_and_averaged_with_them(study: Any) -> None:
    positions = study("positions")
    module, _ = positions.merged("sttm-words-plain", 0.5, positions.WithoutPosition.name)
    first = next(m for m in module.modules() if isinstance(m, positions.WithoutPosition))
    same = torch.randn(1, first.frames, 1, first.dim)
    tokens = same + first.place_FLC
    assert first.features(tokens).abs().max() < 1e-4 < first.features(tokens + torch.randn_like(tokens)).abs().max()
    assert positions.TokenMerger.features(first, tokens).abs().max() > 0.1
    later = [m for m in module.modules() if isinstance(m, positions.WithoutPosition)][1:]
    assert later and all(m.place_FLC is None for m in later)


def test_paths_that_are_the_tracks_have_no_error(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = study("paths")
    step = torch.linspace(-0.4, 0.4, paths.FRAMES)
    tracks = torch.zeros(50, paths.FRAMES, 11)
    tracks[:25, :, 0], tracks[:25, :, 1] = step, -step / 2  # half of the targets move
    data = SimpleNamespace(targets={"tracks": tracks}, clips=lambda indices, frames: None)
    monkeypatch.setattr(paths, "COUNT", 50)
    monkeypatch.setattr(paths, "synthetic_set", lambda *_: data)
    true_BT2 = tracks[..., [1, 0]].unflatten(1, (-1, 2)).mean(2)
    seen = true_BT2[:, None].expand(-1, 2, -1, -1)
    place = torch.stack((true_BT2[:, 3], true_BT2[:, 3] + 0.9), dim=1)  # the second slot started elsewhere
    monkeypatch.setattr(paths, "paths_of", lambda *_: (seen, torch.full((50, 2), 3), place))
    told = paths.on_made_clips(None)
    assert told["slots"] == 25 and told["correlation"] == 1 and told["error"] == 0 < told["error_if_still"]
    monkeypatch.setattr(paths, "paths_of", lambda *_: (-seen, torch.full((50, 2), 3), place))
    assert paths.on_made_clips(None)["correlation"] == -1


def test_what_moves_and_where_slots_started(study: Any) -> None:
    paths = study("paths")
    make = torch.Generator().manual_seed(0)
    clip = torch.randn(64, 64, generator=make).expand(paths.FRAMES, 3, 64, 64).clone()
    clip += 0.01 * torch.randn(clip.shape, generator=make)
    for frame in range(paths.FRAMES):
        clip[frame, :, 16:24, 8 * (frame // 2) : 8 * (frame // 2) + 8] += 3
    expected = torch.zeros(8, 8, 8)
    for frame in range(8):
        expected[frame, 2, frame] = 1
    assert torch.equal(paths.moving(clip), expected.flatten(1))
    model, _ = load_with_preprocess("sttm-motion")
    path, frame, place = paths.paths_of(model.eval(), clip[None])
    assert path.shape == (*frame.shape, 8, 2) and place.shape == (*frame.shape, 2)
    assert place.unique().tolist() == [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]
    assert 0 <= frame.min() and frame.max() < 8 and path.abs().max() <= 0.875 + 1e-5
