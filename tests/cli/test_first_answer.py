"""What `sttm predict` loads before its first answer: what a model of transformers needs, and no other heavy package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from sttm.models import EXAMPLES
from tests.helpers import ROOT

# transformers itself imports its quantizers, torch.distributed.tensor, accelerate and torch._dynamo with any model.
SCRIPT = """
import json, runpy, sys
import transformers.models.videomae.modeling_videomae
before = set(sys.modules)
sys.argv = ["sttm", "predict", *sys.argv[1:]]
try:
    runpy.run_module("sttm", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
print(json.dumps(sorted(set(sys.modules) - before)))
"""
#: Packages that reading a command line, decoding and classifying need beside a model of transformers.
WANTED = {"sttm", "av", "PIL", "pydantic", "pydantic_core", "rich", "typer"}
UNWANTED = {
    *("accelerate", "gradio", "huggingface_hub", "kornia", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas"),
    *("pyarrow", "ray", "scipy", "tensorboard", "timm", "torch", "torchvision", "transformers"),
}
#: Layers of sttm that a prediction does not reach.
UNUSED = {"sttm.benchmark", "sttm.calibration", "sttm.corpus", "sttm.serving", "sttm.training", "sttm.visual"}


def test_a_prediction_loads_nothing_heavy_beside_its_model() -> None:
    command = [sys.executable, "-c", SCRIPT, str(EXAMPLES / "bin.mp4"), "--model", "sttm-words"]
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and "bin" in run.stdout, run.stderr
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert {name.partition(".")[0] for name in loaded} >= WANTED
    assert not [name for name in loaded if name.partition(".")[0] in UNWANTED]
    assert not [name for name in loaded if ".".join(name.split(".")[:2]) in UNUSED]
