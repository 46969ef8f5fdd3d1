"""What every test shares: one thread, no network, the same draws by hypothesis; small models, videos, commands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch or transformers, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Colours and line widths of the terminal that runs the tests must not reach their output.
os.environ.update(NO_COLOR="1", TERM="dumb", COLUMNS="120")
os.environ.pop("FORCE_COLOR", None)

# No deadline: a slow moment of the machine is no failure. Derandomized: a red test is red for everybody.
settings.register_profile("sttm", deadline=None, derandomize=True)
settings.load_profile("sttm")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips that lies beside the repository, or at STTM_DATA."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("STTM_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared clips at {folder}; STTM_DATA names another place")
    return folder


def save_small_model(folder: Path, labels: list[str], num_frames: int) -> Path:
    """Save a very small VideoMAE with random weights, and its preprocessing."""
    import torch
    from torch import nn
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    from sttm.data.transforms.preprocess import Preprocess

    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=num_frames, tubelet_size=2, hidden_size=32, num_hidden_layers=4,
        num_attention_heads=2, intermediate_size=64, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    nn.init.normal_(model.get_parameter("classifier.weight"))  # a new head of zeros gives all clips the same scores
    model.save_pretrained(folder)
    Preprocess.from_folder(folder).to_folder(folder)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """Return the folder of a model of three classes."""
    return save_small_model(tmp_path_factory.mktemp("model"), ["ant", "bee", "cat"], num_frames=8)


@pytest.fixture(scope="session")
def motion_model(tmp_path_factory) -> Path:
    """Return the folder of a model of the 18 motions that writes and numbers them differently from the videos."""
    from sttm.synth.motions import MOTION_CLASSES

    labels = [name.upper().replace(" ", "_") for name in reversed(MOTION_CLASSES)]
    return save_small_model(tmp_path_factory.mktemp("motion-model"), labels, num_frames=4)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Return a folder of three videos of noise, one of them broken, and two files that are no video."""
    import av
    import numpy as np

    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    for seed, name in enumerate(["a.mp4", "deep/c.mkv"]):
        noise = np.random.default_rng(seed).integers(0, 256, (10, 48, 64, 3), np.uint8)
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for image in noise:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode())
    (folder / "b.mp4").write_text("<html>404</html>")
    (folder / "labels.csv").write_text("a.mp4,ant")
    (folder / "notes.md").write_text("# no video")
    return folder


@pytest.fixture(scope="session")
def motion_videos(tmp_path_factory) -> Path:
    """Return a folder of 24 synthetic videos of 18 motions, as Something-Something v2, all of the validation split."""
    from sttm.synth.videos import SynthSettings, make

    folder = tmp_path_factory.mktemp("motion")
    settings = SynthSettings("motion", 24, seed=3, frames=8, size=32, train=0, validation=1, test=0)
    return make(folder / "videos", settings, workers=1)


@pytest.fixture(scope="session")
def motion_list(motion_videos) -> Path:
    """Return a csv that lists 23 of the videos: one is no video, and one does not exist."""
    entries = json.loads((motion_videos / "validation.json").read_text())
    rows = [(f"videos/{e['id']}.mp4", e["template"].replace("[", "").replace("]", "")) for e in entries[:21]]
    (motion_videos / "broken.mp4").write_text("<html>404</html>")
    rows[4:4] = [("broken.mp4", rows[0][1]), ("absent.mp4", rows[1][1])]
    lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
    (motion_videos / "ragged.csv").write_text("\n".join(lines) + "\n")
    return motion_videos / "ragged.csv"


@pytest.fixture(scope="session")
def browser():
    """Return a headless Chromium, driven by Playwright; skip where either is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra dev brings playwright")
    with playwright.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if not own.is_file() and found is None:
            pytest.skip("no Chromium here; `playwright install chromium` brings one")
        path = str(own) if own.is_file() else found
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Open a process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        """Return what each line of JSON holds."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def sttm(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run a command in this process; an exception that gets past main() fails the test."""

    def run(*args: object) -> Outcome:
        from sttm import cli

        monkeypatch.setattr(sys, "argv", ["sttm", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), output.out, output.err)

    return run
