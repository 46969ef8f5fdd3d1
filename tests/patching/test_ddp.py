"""Two processes with half of the clips each end with the gradients of one process with all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
import sttm

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
config = VideoMAEConfig(image_size=32, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=4,
                        num_attention_heads=2, intermediate_size=48, num_labels=3)
model = VideoMAEForVideoClassification(config)
sttm.apply(model, compute=0.7, learned=True)
for name, parameter in model.named_parameters():
    if ".merger." in name:
        parameter.data += 0.1 * torch.randn_like(parameter)
pixels, labels = torch.randn(4, 4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
alone = torch.nn.functional.cross_entropy(model(pixels).logits, labels)
expected = torch.autograd.grad(alone, list(model.parameters()))
mine = slice(2 * rank, 2 * rank + 2)
wrapped = DistributedDataParallel(model)
torch.nn.functional.cross_entropy(wrapped(pixels[mine]).logits, labels[mine]).backward()
for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
    torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)
print(f"rank {rank} agrees")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "step.py")], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rank 0 agrees" in done.stdout and "rank 1 agrees" in done.stdout
