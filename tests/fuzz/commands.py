"""Commands whose output cannot be written, run in the process that is judged; lists scored against other numberings."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

#: What is wrong around a command, and the exit codes that it may have then.
PLACES = {
    "closed stdout": (2,),
    "full stdout": (2,),
    "reader gone": (141,),
    "closed stderr": (0,),
    "full disk": (2,),
    "no permission": (2,),
    "a file for a folder": (2,),
    "no folder": (2,),
    "a loop of links": (2,),
    "a long name": (2,),
}
#: Commands by what they write to: stdout, or OUT, whose suffixes follow.
TO_STDOUT = [
    ["predict", "CLIP", "--model", "MODEL", "--json"],
    ["predict", "CLIP", "--model", "MODEL"],
    ["configs"],
    ["configs", "show", "motion"],
    ["models", "--json"],
]
TO_FILE: list[tuple[list[str], list[str]]] = [
    (["predict", "CLIP", "--model", "MODEL", "--output", "OUT"], [".jsonl", ".csv", ".parquet"]),
    (["show", "CLIP", "--model", "MODEL", "-o", "OUT"], [".png", ".gif", ".html", ".mp4"]),
    (["synth", "OUT", "--clips", "4", "--frames", "4", "--size", "32"], [""]),
    (["eval", "MODEL", "--data", "LIST", "--out", "OUT"], [""]),
]
CAPABILITIES = 0x20080522  # version 3 of the structures of capset


def make(rng: random.Random, seeds: Path, folder: Path) -> Path:
    """Write a command, and what is wrong around it, as JSON."""
    place = rng.choice(list(PLACES))
    if place in ("closed stdout", "full stdout", "reader gone", "closed stderr"):
        words, suffix = rng.choice(TO_STDOUT), ""
    else:
        words, suffixes = rng.choice(TO_FILE)
        suffix = rng.choice(suffixes)
    clip = rng.choice(sorted((seeds / "clips").iterdir()))
    (folder / "list.csv").write_text(f"path,label\n{clip},ant\n")
    given = {"CLIP": str(clip), "MODEL": str(seeds / "plain"), "LIST": str(folder / "list.csv")}
    (folder / "out").mkdir()
    target = folder / "out" / f"made{suffix}"
    if place == "a file for a folder":
        (folder / "out" / "file").touch()
        target = folder / "out" / "file" / f"made{suffix}"
    elif place == "no folder":
        target = Path("/proc/nowhere") / f"made{suffix}"
    elif place == "a loop of links":
        (folder / "out" / "loop").symlink_to("loop")
        target = folder / "out" / "loop" / f"made{suffix}"
    elif place == "a long name":
        target = folder / "out" / f"{'x' * 300}{suffix}"
    arguments = [given.get(word, word).replace("OUT", str(target)) for word in words]
    path = folder / "command.json"
    most = rng.choice([0, 100])  # bytes that the disk still takes: fewer than any command writes
    path.write_text(json.dumps({"place": place, "arguments": arguments, "out": str(folder / "out"), "most": most}))
    return path


def run(path: Path) -> tuple[str, str]:
    """Run the command of a case in this process; return what became of it and what was said."""
    case = json.loads(path.read_text())
    place = case["place"]
    before = _content(Path(case["out"]))
    said, stderr = os.pipe()  # a pipe, as a full disk takes no file
    os.dup2(stderr, 2)
    code = _run(case)
    for descriptor in (2, stderr):
        with suppress(OSError):
            os.close(descriptor)
    with os.fdopen(said, encoding="utf-8", errors="replace") as file:
        text = file.read()
    if "Traceback" in text or "Exception ignored" in text or "failed unexpectedly" in text:
        return "exception", f"{case['arguments'][0]}, {place}: {text[-1500:]}"
    if code not in PLACES[place]:
        return "wrong", f"{case['arguments'][0]}, {place}: exit code {code}: {text[-300:]}"
    after = _content(Path(case["out"]))
    if left := [name for name in after if name not in before]:
        return "wrong", f"{case['arguments'][0]}, {place}: left {left[:3]}"
    lines = [line for line in text.splitlines() if line.startswith("sttm: ") and "warning:" not in line]
    if code == 2 and not lines:
        return "sentence", f"{case['arguments'][0]}, {place}: exit code 2 and {text[:300]!r}"
    return ("refused", re.sub("^sttm: ", "", lines[-1])) if code == 2 else ("answered", "")


def _content(folder: Path) -> set[str]:
    """Return the files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _run(case: dict[str, object]) -> int:
    from sttm.cli import main

    place, out = case["place"], Path(str(case["out"]))
    if place == "closed stdout":
        os.close(1)
    elif place == "full stdout":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif place == "reader gone":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    elif place == "closed stderr":
        os.close(2)
    elif place == "full disk":
        most = int(str(case["most"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    elif place == "no permission":
        out.chmod(0o555)
        _drop_rights()
    for name, number in (("stdout", 1), ("stderr", 2)):
        closed = place == f"closed {name}"
        setattr(sys, name, None if closed else open(number, "w", buffering=-1 if number == 1 else 1, closefd=False))
    sys.argv = ["sttm", *map(str, case["arguments"])]  # type: ignore[call-overload]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _drop_rights() -> None:
    """Give up what root may do beyond the permissions of a file."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())


# --- numbers ---------------------------------------------------------------------------------------------------

#: Classes of the model that is judged, and lists of names that a user may give with a list of numbers.
CLASSES = ["ant", "bee", "cat"]
FILES = ("labels.json", "classInd.txt", "labels.txt")
NAMES = [CLASSES, ["cat", "bee", "ant"], ["bee", "ant"], ["ant", "bee", "cat", "dog"], ["0", "1", "2"], ["x", "y", "z"]]


def make_numbers(rng: random.Random, _seeds: Path, folder: Path) -> Path:
    """Write a list of bare numbers, and perhaps the names of its classes, numbered in one of several ways."""
    names, first = rng.choice(NAMES), rng.choice([0, 0, 1, 2, 100])
    numbers = [rng.choice([*range(first, first + len(names)), *([rng.choice([-1, 7, 10**9])] * (rng.random() < 0.1))])
               for _ in range(rng.randrange(1, 8))]  # fmt: skip
    sign = rng.choice([" ", ","])
    head = "path,label\n" if sign == "," else ""
    lines = "".join(f"{i}.mp4{sign}{number}\n" for i, number in enumerate(numbers))
    path = folder / f"list.{'csv' if sign == ',' else 'txt'}"
    path.write_text(head + lines)
    for i in range(len(numbers)):
        (folder / f"{i}.mp4").touch()
    match rng.randrange(4):
        case 0:
            (folder / "labels.json").write_text(json.dumps({name: first + i for i, name in enumerate(names)}))
        case 1:
            (folder / "classInd.txt").write_text("".join(f"{first + i} {name}\n" for i, name in enumerate(names)))
        case 2:
            (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    return path


def names_file(path: Path) -> Path | None:
    """Return the file of names beside a list, if there is one: it is given as `data.labels`."""
    return next((path.with_name(name) for name in FILES if path.with_name(name).exists()), None)


def truth(path: Path) -> dict[str, str]:
    """Return the name of each video's class, by its file; without a file of names a number is the model's."""
    lines = [line.replace(",", " ").split() for line in path.read_text().splitlines()]
    numbers = {name: int(label) for name, label in lines if name != "path"}
    names, file = dict(enumerate(CLASSES)), names_file(path)
    if file is not None:
        text = file.read_text()
        match file.name:
            case "labels.json":
                names = {number: name for name, number in json.loads(text).items()}
            case "classInd.txt":
                names = {int(line.split()[0]): line.split()[1] for line in text.splitlines()}
            case _:
                names = dict(enumerate(text.split()))
    # Where the names are numbers too, each is that of a class of the model.
    names = {number: CLASSES[int(name)] if name.isdecimal() else name for number, name in names.items()}
    return {name: names.get(number, "") for name, number in numbers.items()}
