"""Names of devices and dtypes, and the machine in words."""

from typing import get_args

import pytest
import torch

from sttm.cli.options import Dtype
from sttm.config.sections import RunSettings
from sttm.devices import DTYPES, device_of, dtype_of, machine
from sttm.errors import SttmError

CPU = torch.device("cpu")


def test_machine_names_threads_and_torch():
    assert torch.__version__ in machine(CPU) and f"{torch.get_num_threads()} thread" in machine(CPU)


def test_options_and_configs_know_the_same_dtypes():
    option = get_args(Dtype)[0]
    assert set(DTYPES) == set(get_args(option)) == set(get_args(RunSettings.model_fields["precision"].annotation))


def test_auto_is_what_torch_has(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device_of("auto").type == kind and device_of("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "gpu"])
def test_a_device_that_is_not_there_is_one_sentence(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SttmError, match=f"{name}.*; "):
        device_of(name)


def test_an_unknown_dtype_is_one_sentence():
    assert dtype_of("bf16") == torch.bfloat16
    with pytest.raises(SttmError, match="unknown dtype 'fp8'; choose fp32 or bf16"):
        dtype_of("fp8")
