"""What is installed, what works, and how to fix what does not: `sttm doctor`."""

import importlib
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path

from sttm.engines import packages
from sttm.errors import first_line

PACKAGES = ("transformers", "numpy", "safetensors", "pydantic", "rich")
#: Optional packages: the extra that brings each, and what it gives.
OPTIONAL = {
    "accelerate": ("train", "sttm train needs it"),
    "kornia": ("train", "it gives colour and geometric augmentation to sttm train"),
    "matplotlib": ("train", "it gives the plot of confusions to sttm eval --out"),
    "pyarrow": ("train", "it gives parquet files to sttm predict --output and sttm eval --predictions"),
    "tensorboard": ("train", "it gives curves of a run, run.trackers: [tensorboard]"),
    "onnx": ("export", "torch.onnx.export of a model needs it"),
    "onnxscript": ("export", "torch.onnx.export of a model needs it"),
    "onnxruntime": ("export", "it runs an exported model, and --engine onnx"),
    "openvino": ("export", "it runs an exported .xml, and --engine openvino in fp32, bf16 or int8"),
    "gradio": ("serve", "sttm serve needs it"),
    "ray": ("batch", "sttm batch runs on it"),
}


@dataclass(frozen=True)
class Finding:
    """The result of one check: "ok", "absent" (optional, and not installed) or "broken"."""

    name: str
    status: str
    detail: str
    needed: bool
    """Whether nothing works without it."""
    fix: str = ""
    """What to do where it is broken, or to get what is absent."""


def examine() -> Iterator[Finding]:
    """Check everything that sttm needs or can use, one Finding at a time; nothing raises."""
    yield _try("python", lambda: f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _try("torch", _torch, fix=_reinstall("torch"))
    for name in PACKAGES:
        yield _try(name, partial(_import, name), fix=_reinstall(name))
    yield _try("video", _video, fix=_reinstall("av"))
    gives, repair = "sttm does not need it", "pip uninstall torchvision: sttm does not need it"
    yield _try_optional("torchvision", _torchvision, gives, install="", repair=repair)
    yield _try("model", _model, fix="fix what is broken above; if nothing is, reinstall sttm")
    for name, (extra, gives) in OPTIONAL.items():
        fix = f"pip install 'sttm[{extra}]'"
        yield _try_optional(name, partial(_import, name), gives, install=fix, repair=_reinstall(name))


def _try(name: str, check: Callable[[], str], *, needed: bool = True, fix: str = "") -> Finding:
    """Run one check, which returns what it found; whatever it raises is caught."""
    try:
        return Finding(name, "ok", check(), needed)
    except Exception as error:  # a broken installation can raise anything
        return Finding(name, "broken", first_line(error), needed, fix)


def _try_optional(name: str, check: Callable[[], str], gives: str, *, install: str, repair: str) -> Finding:
    """Run the check of an optional package if it is installed; say what it gives if it is not."""
    if find_spec(name) is None:
        return Finding(name, "absent", f"not installed; {gives}", needed=False, fix=install)
    return _try(name, check, needed=False, fix=repair)


def _reinstall(name: str) -> str:
    """Return the line that installs a package again, in a version that sttm takes, and nothing else."""
    own = [line for line in requires("sttm") or () if re.match(rf"{name}\b", line)]
    requirement = own[0].partition(";")[0].strip() if own else name
    return f"pip install --force-reinstall --no-deps '{requirement}'"


def _import(name: str) -> str:
    if name == "openvino":
        packages.openvino()
    else:
        importlib.import_module(name)
    return version(name)


def _torch() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.__version__}, CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}"
    return f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads"


def _torchvision() -> str:
    """Recognise a torchvision built for another torch, with which no vision model of transformers loads."""
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
