"""One case: a copy of something whole that is wrong in a place, made from a number alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sttm.model_folder import INDEX, WEIGHTS
from sttm.patching.saving import PLAN_FILE
from sttm.training import checkpoints
from tests.fuzz import commands
from tests.fuzz.values import changed_bytes, changed_json, odd_text

#: Names of files that mean something elsewhere, and of members of a tar.
NAMES = ["a\nb", "%s%n", "%03d", "-y", "a:b", "file:x", "é" * 60, " ", "*", "[a]", "'\"", "\udcff", "a|b"]
MEMBERS = ["../a.mp4", "/etc/passwd.mp4", "a.mp4", "b/c.d.mp4", ".mp4", "a\n.mp4"]
TYPES = [tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
COLUMNS: list[Any] = [
    {"path": ["a.mp4", "b.mp4"]},
    {"path": ["a.mp4", "../b.mp4"]},
    {"path": ["a\0b", "x" * 5000, "\n"]},
]
COLUMNS += [{"path": [1, 2]}, {"path": [None, "a"]}, {"path": [["a"]]}, {"path": [{"a": 1}]}, {"a": ["x"], "b": ["y"]}]
COLUMNS += [{"": ["a"]}, {"path": [b"\xff"]}, {"path": []}]
#: What is no plain value of YAML, and what a config cannot inherit from.
TAGS = ["!!python/object/apply:os.system [id]", "!!binary x", "!!timestamp 2020-01-01", "&x [*x]", "0x" + "f" * 5000]
TAGS += ["1" * 5000, "[" * 3000, "1_0e+400", "2020-99-99"]
PARENTS = ["config.yaml", "/dev/zero", "../../etc/passwd", "[1]", "", ".", "~"]


@dataclass(frozen=True)
class Case:
    """What is judged: a kind of `judge.ENTRIES`, and the path that it gets."""

    kind: str
    path: str


def make(number: int, seed: int, seeds: Path, folder: Path) -> Case:
    """Make the case of a number in an empty folder."""
    rng = random.Random(f"{seed}-{number}")
    kinds = list(KINDS)
    kind = rng.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
    return Case(kind, str(KINDS[kind][0](rng, seeds, folder)))


def _clip(rng: random.Random, seeds: Path, folder: Path) -> Path:
    files = sorted((seeds / "clips").iterdir())
    whole = rng.choice(files)
    data = changed_bytes(whole.read_bytes(), rng, [file.read_bytes() for file in files])
    suffix = whole.suffix if rng.random() < 0.9 else rng.choice([".mp4", ".txt", ".m3u8", ".jpg", ""])
    path = folder / f"clip{suffix}"
    path.write_bytes(data)
    return path


def _odd_clip(rng: random.Random, seeds: Path, folder: Path) -> Path:
    """Make what is no regular file with a video in it, or has a name that means something elsewhere."""
    whole, path = seeds / "clips" / "seed.mp4", folder / "clip.mp4"
    secret = folder / "secret.mp4"
    shutil.copy(whole, secret)
    match rng.randrange(14):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(path.name)
        case 2:
            path.symlink_to("absent.mp4")
        case 3:
            path.mkdir()
        case 4:
            path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "/etc/passwd"]))
        case 5:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case 6:
            path.write_text(f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
        case 7:
            path.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
        case 8:
            mpd = f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>'
            path.write_text(f'<?xml version="1.0"?>{mpd}')
        case 9:
            path.write_bytes(bytes(rng.choice([0, 1, 7, 8, 9, 100])))
        case 10:  # a picture that claims much
            size = rng.choice([1, 12_000, 65_535])
            path.write_bytes(b"GIF89a" + size.to_bytes(2, "little") * 2 + b"\x00\x00\x00;" + bytes(rng.randrange(30)))
        case 11:
            Path(shutil.copy(whole, path)).chmod(0)
        case 12:
            path.mkdir()
            for i in range(3):
                (path / f"{i}.jpg").write_bytes(changed_bytes(b"\xff\xd8\xff\xe0" + bytes(400), rng))
        case _:
            path = folder / f"{rng.choice(NAMES)}.mp4"
            shutil.copy(whole, path)
    return path


def _list(rng: random.Random, seeds: Path, folder: Path) -> Path:
    whole = rng.choice(sorted((seeds / "lists").iterdir()))
    path, text = folder / whole.name, whole.read_text()
    if whole.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(changed_json(text, rng).encode("utf-8", "surrogatepass"))
    elif rng.random() < 0.5:
        path.write_bytes(changed_bytes(text.encode(), rng))
    else:  # one cell is another
        separator = next(sign for sign in ",; \n" if sign in text)
        cells = text.split(separator)
        cells[rng.randrange(len(cells))] = odd_text(rng)
        path.write_bytes(separator.join(cells).encode("utf-8", "surrogatepass"))
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    return path


def _parquet(rng: random.Random, seeds: Path, folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    path = folder / "list.parquet"
    pyarrow.parquet.write_table(pyarrow.table(rng.choice(COLUMNS)), path)
    if rng.random() < 0.7:
        path.write_bytes(changed_bytes(path.read_bytes(), rng))
    return path


def _config(rng: random.Random, seeds: Path, folder: Path) -> Path:
    whole = rng.choice(sorted((seeds / "configs").iterdir()))
    path, text = folder / "config.yaml", whole.read_text()
    match rng.randrange(5):
        case 0:
            path.write_bytes(changed_bytes(text.encode(), rng))
        case 1:
            aliases = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) or 1}]" for i in range(1, 12))
            path.write_text(f"a0: &a0 [1]\n{aliases}\n{text}")
        case 2:
            path.write_text(f"{text}\nmodel: {rng.choice(TAGS)}\n")
        case 3:
            path.write_text(f"inherit: {rng.choice(PARENTS)}\n{text}")
        case _:  # JSON is YAML
            changed = changed_json(json.dumps(yaml.safe_load(text)), rng)
            path.write_bytes(changed.encode("utf-8", "surrogatepass"))
    return path


def _model(rng: random.Random, seeds: Path, folder: Path, kind: str = "plain") -> Path:
    path = Path(shutil.copytree(seeds / kind, folder / "model"))
    names = ["config.json", "preprocessor_config.json", WEIGHTS]
    names += [PLAN_FILE] * 3 if kind == "merged" else ["config.json", "index"]
    match rng.choice(names):
        case "index":
            shutil.move(path / WEIGHTS, path / "part.safetensors")
            shutil.copy(path / "part.safetensors", folder / "outside.safetensors")
            header = _header(path / "part.safetensors")[0]
            index = json.dumps({"weight_map": dict.fromkeys(header, "part.safetensors")})
            place = rng.choice(
                ["../outside.safetensors", str(folder / "outside.safetensors"), "absent", "", ".", "part.safetensors"]
            )
            text = index.replace("part.safetensors", place) if rng.random() < 0.5 else changed_json(index, rng)
            (path / INDEX).write_bytes(text.encode("utf-8", "surrogatepass"))
        case name if name == WEIGHTS:
            file = path / WEIGHTS
            if rng.random() < 0.5:
                header, rest = _header(file)
                changed = changed_json(json.dumps(header), rng).encode("utf-8", "replace")
                size = rng.choice([len(changed), len(changed), 0, 2**63, 2**64 - 1, len(changed) + 9])
                file.write_bytes(size.to_bytes(8, "little") + changed + rest)
            else:
                file.write_bytes(changed_bytes(file.read_bytes(), rng))
        case name:
            if rng.random() < 0.1:
                (path / name).unlink()
                (path / name).symlink_to(rng.choice([name, "/dev/zero", "/dev/null", "/etc/passwd", "."]))
            else:
                text = changed_json((path / name).read_text(), rng)
                (path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def _merged(rng: random.Random, seeds: Path, folder: Path) -> Path:
    return _model(rng, seeds, folder, "merged")


def _checkpoint(rng: random.Random, seeds: Path, folder: Path) -> Path:
    path = Path(shutil.copytree(seeds / "run" / "checkpoints", folder / "checkpoints"))
    step = path / "step-00000004"
    file = rng.choice(sorted(step.iterdir()))
    match rng.randrange(5):
        case 0:
            file.unlink()
        case 1:
            (step / rng.choice(["x", "a\nb", ".hidden"])).write_text("x")
        case 2:
            step.rename(path / rng.choice(["step-", "step-x", "step-99999999999", "step-00000005", "step-\n"]))
        case 3 if file.suffix == ".json" and file.name != checkpoints.HASHES:  # with hashes that fit it
            file.write_bytes(changed_json(file.read_text(), rng).encode("utf-8", "surrogatepass"))
            hashes = json.loads((step / checkpoints.HASHES).read_text())
            (step / checkpoints.HASHES).write_text(json.dumps(hashes | {file.name: checkpoints._hash(file)}))
        case _ if file.suffix == ".json":
            file.write_bytes(changed_json(file.read_text(), rng).encode("utf-8", "surrogatepass"))
        case _:
            file.write_bytes(changed_bytes(file.read_bytes(), rng))
    return path


def _shard(rng: random.Random, seeds: Path, folder: Path) -> Path:
    path = folder / "shard.tar"
    if rng.random() < 0.6:
        path.write_bytes(changed_bytes((seeds / "shard.tar").read_bytes(), rng))
        return path
    data = (seeds / "clips" / "seed.mp4").read_bytes()
    with path.open("wb") as file:
        for i in range(rng.randrange(1, 4)):
            name = rng.choice([*MEMBERS, f"{i}.mp4", f"{i}.cls"])
            member = tarfile.TarInfo(name)
            member.size = rng.choice([len(data), 0, 2**40, 8**11 - 1])
            member.type = rng.choice(TYPES)
            member.linkname = rng.choice(["/etc/passwd", "../secret", name])
            if rng.random() < 0.2:
                member.size, member.pax_headers = len(data), {"size": rng.choice([str(2**63), "-1", "x", "1e30"])}
            file.write(member.tobuf(tarfile.PAX_FORMAT))
            file.write(data + bytes(-len(data) % 512))
    return path


Make = Callable[[random.Random, Path, Path], Path]
#: How the cases of a kind are made, and how many of them there are for each other's.
KINDS: dict[str, tuple[Make, int]] = {
    "clip": (_clip, 9),
    "odd clip": (_odd_clip, 3),
    "list": (_list, 6),
    "parquet": (_parquet, 2),
    "config": (_config, 5),
    "model": (_model, 6),
    "merged": (_merged, 5),
    "checkpoint": (_checkpoint, 2),
    "shard": (_shard, 3),
    "numbers": (commands.make_numbers, 1),
    "command": (commands.make, 2),
}


def _header(file: Path) -> tuple[dict[str, object], bytes]:
    """Return the header of a safetensors file, and the bytes behind it."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]
