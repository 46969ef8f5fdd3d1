"""The peak memory of a forward."""

import torch
from torch import nn

from sttm.benchmark.memory import peak_bytes


def test_peak_memory_counts_what_is_in_use_together():
    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(5):
                x = x + 1  # two are in use at any time: the old one and the new one
            return x.view(-1)[:1]

    pixels = torch.zeros(1 << 20)
    model = Chain()
    with torch.no_grad():
        peak = peak_bytes(model, pixels, lambda: model(pixels))
    assert peak == 3 * pixels.nbytes  # with the pixels themselves
