"""What is installed, what works, and how to fix what does not: `sttm doctor`."""

import importlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from sttm.errors import first_line

PACKAGES = ("transformers", "numpy", "safetensors", "pydantic", "rich")
TRAINING = ("accelerate", "kornia", "matplotlib", "pyarrow", "tensorboard")  # what sttm[train] brings
INSTALL = "pip install --force-reinstall -c constraints.txt"


@dataclass(frozen=True)
class Finding:
    """The result of one check: "ok", "absent" (optional, and not installed) or "broken"; `fix` says what to do."""

    name: str
    status: str
    detail: str
    needed: bool
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Check everything that sttm needs or can use, one Finding at a time; nothing raises."""
    yield _try("python", lambda: f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _try("torch", _torch, fix=f"{INSTALL} torch")
    for name in PACKAGES:
        yield _try(name, partial(_import, name), fix=f"{INSTALL} {name}")
    yield _try("video", _video, fix=f"{INSTALL} av")
    yield _try("torchvision", _torchvision, needed=False, fix="pip uninstall torchvision: sttm does not need it")
    yield _try("model", _model, fix="fix what is broken above; if nothing is, reinstall sttm")
    for name in TRAINING:
        yield _try(name, partial(_import, name, optional=True), needed=False, fix="pip install 'sttm[train]'")


def _try(name: str, check: Callable[[], str | None], *, needed: bool = True, fix: str = "") -> Finding:
    """Run one check, which returns what it found, or None for something absent; whatever it raises is caught."""
    try:
        detail = check()
    except Exception as error:  # a broken installation can raise anything
        return Finding(name, "broken", first_line(error), needed, fix)
    if detail is None:
        return Finding(name, "absent", "not installed, and not needed", needed)
    return Finding(name, "ok", detail, needed)


def _import(name: str, *, optional: bool = False) -> str | None:
    if optional and find_spec(name) is None:
        return None
    importlib.import_module(name)
    return version(name)


def _torch() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.__version__}, CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}"
    return f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads"


def _torchvision() -> str | None:
    """Recognise a torchvision built for another torch, with which no vision model of transformers loads."""
    if find_spec("torchvision") is None:
        return None
    # In a separate process, because a failed import leaves torch's operators half registered.
    command = [sys.executable, "-c", "import torchvision"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "torchvision::nms does not exist" in run.stderr:
        raise RuntimeError("it was built for another torch, and keeps transformers' vision models from loading")
    if run.returncode:
        raise RuntimeError((run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1])
    return version("torchvision")


def _video() -> str:
    """Write a short mp4, and read it back."""
    import av
    import numpy as np

    from sttm.data.video.read import Sampling, read
    from sttm.synth.videos import encode

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grey.mp4"
        encode(np.stack([np.full((64, 64, 3), level, np.uint8) for level in range(0, 256, 32)]), path)
        (clip,) = read(path, Sampling(num_frames=8))
    if len(set(clip.indices)) != 8:
        raise RuntimeError(f"of 8 frames written as h264, {len(set(clip.indices))} came back")
    return f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}; h264 written and read back"


def _model() -> str:
    """Load the bundled model, and run it on grey frames."""
    import torch

    from sttm import models
    from sttm.evaluation.inference import forward

    model, preprocess = models.load_with_preprocess()
    frames_TCHW = torch.full((preprocess.sampling.num_frames, 3, 64, 64), 128, dtype=torch.uint8)
    if not forward(model, preprocess(frames_TCHW)).isfinite().all():
        raise RuntimeError(f"the bundled model {models.DEFAULT} gives scores that are not finite")
    return f"the bundled {models.DEFAULT} loads and predicts"
