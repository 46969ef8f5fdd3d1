"""Find the file of each annotation; every folder is listed once, as single look-ups are slow on a network disk."""

from __future__ import annotations

import os
from pathlib import Path

from sttm.data.datasets.annotations import Annotation
from sttm.data.datasets.formats import multi_label
from sttm.data.video.video import VIDEO_SUFFIXES, Video
from sttm.errors import SttmError, quoted


def _is_below(root: Path, path: str) -> bool:
    """Return whether a path of a list, taken from the root on, stays below it; links are not looked at."""
    whole = os.path.normpath(Path.cwd() / root)
    return Path(os.path.normpath(Path(whole, path))).is_relative_to(whole)


class FileFinder:
    """Find videos from a root on; where it is `bounded`, no path of a list may leave it (a link on the disk may)."""

    def __init__(self, root: Path, *, bounded: bool = False) -> None:
        self.root, self.bounded = root, bounded
        self._folders: dict[str, tuple[str, dict[str, bool], dict[str, str]]] = {}

    def find(self, annotation: Annotation, label: int | None) -> Video | str:
        """Return the video of an annotation, or the first path that was tried if there is none.

        Raises:
            SttmError: if a folder cannot be listed, a file is where a folder of frames should be, or a path leaves the
                root.
        """
        if annotation.member is not None:
            return Video(annotation.paths[0], label, member=annotation.member)
        tried = None
        for path in annotation.paths:
            if self.bounded and not _is_below(self.root, path):
                leaves = f"{annotation.where} names {quoted(path)!r}, which leaves the root {self.root}"
                raise SttmError(f"{leaves}; correct the list, or set another root")
            folder, slash, name = path.rstrip("/").rpartition("/")
            prefix, entries, stems = self._folder(folder or slash)
            found = stems.get(name, name) if annotation.any_suffix else name
            if found in entries and (not annotation.any_suffix or name in stems or entries[found]):
                if annotation.frames is not None and not entries[found]:
                    file = f"{prefix}{found} is a file, no folder of frames"
                    raise multi_label(f"{file}, and {annotation.where} has more numbers")
                return Video(prefix + found, label, annotation.frames or ((0, None) if entries[found] else None))
            tried = tried or prefix + (f"{name}.*" if annotation.any_suffix else name)
        assert tried is not None, annotation
        return tried

    def _folder(self, folder: str) -> tuple[str, dict[str, bool], dict[str, str]]:
        """Return a folder's path with a slash, its entries with whether each is a folder, its videos by stem."""
        if folder not in self._folders:
            path = Path(self.root, folder)
            try:
                with os.scandir(path) as found:
                    entries = {entry.name: entry.is_dir() for entry in found}
            except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a null byte
                entries = {}
            except OSError as error:
                raise SttmError(f"the folder {path} cannot be listed ({error.strerror}); allow reading it") from error
            split = [(name, *name.rpartition(".")) for name in sorted(entries, reverse=True) if not entries[name]]
            stems = {stem: name for name, stem, dot, suffix in split if dot + suffix.lower() in VIDEO_SUFFIXES}
            self._folders[folder] = str(path / "x")[:-1], entries, stems
        return self._folders[folder]
