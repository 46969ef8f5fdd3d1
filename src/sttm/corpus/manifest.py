"""What a run over a corpus has settled and finished: a manifest, and a line for each part that is written.

A part is finished when its line is in `parts.jsonl`. Its file was renamed into place before that, so that a run that
is killed at any moment leaves whole parts and no half one; the next run writes all others again, under the same names.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from sttm.config.parsing import parse_json, read_json
from sttm.errors import SttmError, first_line, shown

FILE, LINES, PARTS = "manifest.json", "parts.jsonl", "parts"
Features = Literal["none", "pooled", "slots"]


@dataclass(frozen=True)
class Settings:
    """All that decides what is in the rows, by the names of the command's options."""

    model: str
    model_sha256: str
    compute: float | None
    method: str
    features: Features
    views: str
    top_k: int
    batch_size: int
    part: int
    """Videos in a part."""
    device: str
    dtype: str
    videos: int
    inputs_sha256: str

    def differences(self, before: dict[str, Any]) -> list[str]:
        """Return in words what another run was begun with, setting by setting."""
        found = []
        for field in fields(self):
            now, then = getattr(self, field.name), before.get(field.name)
            if now == then:
                continue
            if field.name == "model_sha256":
                found.append("the files of the model have changed")
            elif field.name in ("videos", "inputs_sha256"):
                found.append(f"INPUT has {self.videos:,} videos that are not the {shown(before.get('videos'))} of then")
            else:
                found.append(f"--{field.name.replace('_', '-')} was {shown(then)} and is {shown(now)}")
        return list(dict.fromkeys(found))


class Store:
    """An output folder: its manifest, and its parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: dict[int, dict[str, Any]] = {}
        """The line of each finished part, by number."""

    @property
    def begun(self) -> bool:
        """Whether a run has begun here."""
        return (self.folder / FILE).is_file()

    def begin(self, settings: Settings) -> None:
        """Begin a run, or go on with the one that has begun here; temporary files of a killed one are deleted.

        Raises:
            SttmError: if it was begun with other settings, or the folder holds something else.
        """
        with writing(self.folder):
            (self.folder / PARTS).mkdir(exist_ok=True)
        for pattern in (".*.parquet.*", f"{PARTS}/.*.parquet.*", f".{FILE}.*", f".{LINES}.*"):
            for left in self.folder.glob(pattern):
                left.unlink(missing_ok=True)
        if not self.begun:
            self._write({"settings": asdict(settings), "versions": versions(), "sessions": [], "finished": False})
            return
        before = self.read().get("settings")
        changed = settings.differences(before if isinstance(before, dict) else {})
        if changed:
            what = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise SttmError(f"{self.folder} was begun otherwise: {what}: give the same again, or another OUTPUT")
        self._read_lines(-(-settings.videos // settings.part))

    def read(self) -> dict[str, Any]:
        """Return the manifest; raise SttmError if it is damaged."""
        return read_json(self.folder / FILE)

    def write_part(self, number: int, table: Any) -> None:
        """Write a part whole: its file under a temporary name, renamed, then its line; SttmError if it cannot be."""
        with writing(self.folder):
            self._write_part(number, table)

    def _write_part(self, number: int, table: Any) -> None:
        import pyarrow.parquet

        path = self.folder / PARTS / name_of(number)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pyarrow.parquet.write_table(table, temporary, compression="zstd")
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        errors = len(table) - table["error"].null_count
        line = {"part": number, "file": path.name, "rows": len(table), "errors": errors, "bytes": size}
        self.parts[number] = line | {"sha256": digest}
        with (self.folder / LINES).open("a", encoding="utf-8") as lines:
            print(json.dumps(self.parts[number]), file=lines, flush=True)
            os.fsync(lines.fileno())

    def close(self, session: dict[str, Any], *, finished: bool) -> dict[str, Any]:
        """Write into the manifest what is finished, and what this session did; return the manifest."""
        values = self.read()
        parts = [self.parts[number] for number in sorted(self.parts)]
        values["sessions"] = [*values.get("sessions", []), session]
        values |= {"finished": finished, "rows": sum(p["rows"] for p in parts)}
        values |= {"errors": sum(p["errors"] for p in parts), "parts": parts}
        self._write(values)
        return values

    def _read_lines(self, total: int) -> None:
        """Read which parts are finished; a line that was cut off, or whose file is not there in full, counts not."""
        path = self.folder / LINES
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                line = parse_json(text, path)
                number, size = int(line["part"]), int(line["bytes"])
                there = (self.folder / PARTS / name_of(number)).stat().st_size == size and number < total
                sound = there and isinstance(line["rows"] + line["errors"], int) and isinstance(line["sha256"], str)
            except (ValueError, KeyError, TypeError, OSError):
                continue
            if sound:
                self.parts[number] = line
        whole = "".join(json.dumps(line) + "\n" for line in self.parts.values())
        self._replace(path, whole)

    def _write(self, values: dict[str, Any]) -> None:
        self._replace(self.folder / FILE, json.dumps(values, indent=1) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with writing(self.folder):
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise an SttmError for what the system says when it cannot write, such as that the disk is full."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else first_line(error)[:200]
        advice = "what is finished stays: make room there, and run the same command again to go on"
        raise SttmError(f"cannot write to OUTPUT={folder}: {reason}; {advice}") from error


def name_of(number: int) -> str:
    """Return the file name of a part."""
    return f"part-{number:06d}.parquet"


def model_sha256(folder: Path) -> str:
    """Return the SHA-256 of the files that make a model: weights and every json."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json")):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def versions(packages: Sequence[str] = ("sttm", "torch", "transformers", "av", "ray", "pyarrow")) -> dict[str, str]:
    """Return the versions of what makes the rows."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
