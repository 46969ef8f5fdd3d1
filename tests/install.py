"""Install sttm as users do, in fresh environments outside the checkout, and run its first commands in each.

How to run, from the project's root: make test-install
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = ROOT / "constraints.txt"
TORCH = next(line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
#: Extras that are installed, and extras that take too long for that, whose packages are only resolved.
INSTALLED, RESOLVED = ("train", "export"), ("serve", "batch", "all")
CONFIG = """
data: {train: {list: made/train.json, root: made/videos}, labels: made/labels.json, workers: 0}
model: {start: sttm-motion-plain}
merging: {compute: 0.62}
optimizer: {lr: 1e-4, steps: 2, batch_size: 4}
run: {output: run}
"""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sttm-install-"))
    try:
        wheel = build(folder / "wheel")
        core = folder / "core"
        run(sys.executable, "-m", "venv", str(core))
        pip(core, "install", TORCH)  # first and alone, so that nothing else can bring in another build of it
        pip(core, "install", str(wheel))
        copies = {name: copied(core, folder / name) for name in ("clone", *INSTALLED)}  # before anything runs in it
        jobs = [partial(alone, core, folder), partial(of_clone, copies["clone"], folder)]
        jobs += [partial(with_extra, extra, copies[extra], wheel, folder) for extra in INSTALLED]
        jobs += [partial(resolved, extra, core, wheel, folder) for extra in RESOLVED]
        with ThreadPoolExecutor(2) as pool:  # each waits for processes; one that fails ends the run
            for done in as_completed([pool.submit(job) for job in jobs]):
                done.result()
    finally:
        shutil.rmtree(folder)
    print("All installed and ran")


def alone(core: Path, folder: Path) -> None:
    """Check the package without extras: it works, and says what training needs."""
    work = folder / "work-core"
    first_commands(core, [str(core / "bin" / "sttm")], work)
    refused = run(str(core / "bin" / "sttm"), "train", "ut_interaction", folder=work, code=2)
    assert "pip install 'sttm[train]'" in refused.stderr, refused.stderr


def of_clone(clone: Path, folder: Path) -> None:
    """Check the package as it is installed from a clone."""
    pip(clone, "install", "--no-deps", "--force-reinstall", str(ROOT))
    first_commands(clone, [str(clone / "bin" / "python"), "-m", "sttm"], folder / "work-clone")


def build(folder: Path) -> Path:
    """Return the wheel, built from the checkout; it holds the recipes."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def copied(environment: Path, to: Path) -> Path:
    """Return a copy of a fresh environment, its files shared: pip replaces files and changes none."""
    return Path(shutil.copytree(environment, to, symlinks=True, copy_function=os.link))


def first_commands(environment: Path, sttm: list[str], folder: Path) -> None:
    """Run what a new user types first, in a new folder."""
    folder.mkdir()
    assert run(*sttm, "--version", folder=folder).stdout.strip() == PROJECT["version"]
    place = run(str(environment / "bin" / "python"), "-c", "import sttm; print(sttm.__file__)", folder=folder).stdout
    assert place.startswith(str(environment)), place
    run(*sttm, "doctor", folder=folder)
    listed = run(*sttm, "configs", folder=folder).stdout
    assert "ssv2/videomae-b-sttm" in listed and "ut_interaction" in listed
    run(*sttm, "synth", "made", "--clips", "60", "--size", "64", "--workers", "1", folder=folder)
    lines = run(*sttm, "predict", "made/videos/0.mp4", "--json", "--output", "labels.csv", folder=folder).stdout
    assert json.loads(lines)["predictions"][0]["score"] > 0
    assert len((folder / "labels.csv").read_text(encoding="utf-8").splitlines()) == 2


def with_extra(extra: str, environment: Path, wheel: Path, folder: Path) -> None:
    """Install an extra, and check that it brings what it is for."""
    work = folder / f"work-{extra}"
    pip(environment, "install", f"{wheel}[{extra}]")
    sttm = [str(environment / "bin" / "python"), "-m", "sttm"]
    first_commands(environment, sttm, work)
    found = {row["name"]: row["status"] for row in json.loads(run(*sttm, "doctor", "--json", folder=work).stdout)}
    names = [line.partition(">")[0] for line in PROJECT["optional-dependencies"][extra]]
    assert all(found[name] == "ok" for name in names), found
    if extra == "train":
        (work / "c.yaml").write_text(CONFIG, encoding="utf-8")
        run(*sttm, "train", "c.yaml", folder=work)
        run(*sttm, "predict", "made/videos", "--model", "run/model", "--output", "labels.parquet", folder=work)


def resolved(extra: str, environment: Path, wheel: Path, folder: Path) -> None:
    """Check that the pins hold a set of packages for an extra, and that it brings in no other torch."""
    report = folder / f"{extra}.json"
    pip(environment, "install", "--dry-run", "--report", str(report), f"{wheel}[{extra}]")
    names = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert "torch" not in names and names & {"gradio", "ray"}, names


def pip(environment: Path, command: str, *args: str) -> None:
    run(str(environment / "bin" / "python"), "-m", "pip", command, "--quiet", "-c", str(CONSTRAINTS), *args)


def run(*command: str, folder: Path = Path("/"), code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout; it must end with this exit code, and without a traceback."""
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    print(f"{time.monotonic() - started:6.1f} s  {' '.join(command)[-100:]}", flush=True)
    assert done.returncode == code and "Traceback" not in done.stderr, (command, done.stdout, done.stderr)
    return done


if __name__ == "__main__":
    main()
