"""Corpora of small videos for `sttm batch`, and what a run has written so far."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.dataset

from sttm.synth.videos import SynthSettings, make

#: Videos that are made; a larger corpus links to them.
MADE = 40
#: The part of a command line that starts `sttm batch` with the interpreter that runs the study.
BATCH = [sys.executable, "-m", "sttm", "batch"]


def linked(folder: Path, videos: int) -> Path:
    """Make a few small videos, link to them under as many names as there shall be videos, and return their list."""
    made = make(folder / "made", SynthSettings("motion", min(videos, MADE), frames=16, size=56), workers=1) / "videos"
    own, names = sorted(made.glob("*.mp4")), folder / "videos"
    names.mkdir()
    for number in range(videos):
        (names / f"{number:07d}.mp4").hardlink_to(own[number % len(own)])
    listed = folder / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in sorted(names.iterdir())), encoding="utf-8")
    return listed


def finished(output: Path) -> bool:
    """Return whether the manifest says that all is done."""
    manifest = output / "manifest.json"
    return manifest.is_file() and bool(json.loads(manifest.read_text(encoding="utf-8"))["finished"])


def parts_of(output: Path) -> dict[str, tuple[int, int]]:
    """Return, for each part that is entered as finished, its rows and when its file was written, by its name."""
    found = {}
    with suppress(OSError):
        for text in (output / "parts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("}\n"):
                line = json.loads(text)
                found[line["file"]] = (line["rows"], (output / "parts" / line["file"]).stat().st_mtime_ns)
    return found


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts in the order of their numbers, less the seconds that reading them took."""
    if not list((output / "parts").glob("*.parquet")):
        return []
    rows = pyarrow.dataset.dataset(output / "parts", format="parquet").to_table().drop_columns(["seconds"])
    return sorted(rows.to_pylist(), key=lambda row: row["number"])
