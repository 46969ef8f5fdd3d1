"""Data sets that are a folder for each class, of videos or of folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sttm.data.datasets.annotations import SPLITS, Annotation, AnnotationFile, AnnotationList
from sttm.data.video.frame_folder import PICTURE_SUFFIXES
from sttm.data.video.video import VIDEO_SUFFIXES


def read(file: AnnotationFile) -> AnnotationList:
    """Read a folder for each class, below folders for the splits or not."""
    aliases = {alias for names in SPLITS.values() for alias in names}
    tops, skipped = _inside(file.path)
    has_splits = bool(tops) and all(top.name in aliases for top in tops)
    annotations, classes = [], set()
    for top in tops if has_splits else [file.path]:
        columns = {"split": top.name} if has_splits else {}
        folders, loose = _inside(top)
        skipped += loose if has_splits else []
        for folder in folders:
            classes.add(folder.name)
            for path, is_folder in _videos_below(folder, skipped):
                relative = path.relative_to(file.path).as_posix()
                frames = (0, None) if is_folder else None
                annotations.append(Annotation((relative,), folder.name, str(path), frames=frames, columns=columns))
    names = tuple(path.relative_to(file.path).as_posix() for path in skipped)
    return AnnotationList(annotations, tuple(sorted(classes)), root=file.path, skipped=names)


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in a folder, and its files, in the order of their names; hidden ones are left out."""
    with os.scandir(folder) as entries:
        shown = sorted((Path(entry.path), entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    return [path for path, is_folder in shown if is_folder], [path for path, is_folder in shown if not is_folder]


def _videos_below(folder: Path, skipped: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield video files, and folders of pictures, in the order of their names, and whether each is a folder.

    All other files are added to `skipped`.
    """
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        pictures = {name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES}
        if pictures and Path(here) != folder:
            yield Path(here), True
        else:
            pictures = set()
        yield from ((Path(here, name), False) for name in sorted(files) if _is_video(name))
        others = sorted(name for name in files if not _is_video(name) and name not in pictures)
        skipped.extend(Path(here, name) for name in others if not name.startswith("."))


def _is_video(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
