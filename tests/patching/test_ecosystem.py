"""What others do to a model, merged or about to be: offload, quantize, adapt, shard, trace, export, wrap, save."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn

import sttm
from sttm.patching import api
from sttm.patching.saving import PLAN_FILE
from tests.helpers import FAMILIES, MORE, answer, lively, logits, pixels, said, stir

#: One of each family: what is tested here does not depend on TimeSformer's kind of attention.
ONE_EACH = [name for name in FAMILIES if name not in ("timesformer-joint", "timesformer-space")]
families = pytest.mark.parametrize("family", ONE_EACH)
#: Exporters: of the families besides, rotary positions by an argument and a head of keys, in the learned form.
EXPORTED = [*itertools.product(ONE_EACH, [False, True]), *((family, True) for family in ("dinov3", "siglip"))]
exported = pytest.mark.parametrize(("family", "learned"), EXPORTED)


def merged(family: str, learned: bool = True) -> Any:
    model = lively(family)
    sttm.apply(model, compute=0.6, learned=learned)
    stir(model)
    return model


def auto_class(model: Any) -> Any:
    """Return transformers' auto class of classifiers such as this one."""
    return getattr(transformers, f"AutoModelFor{type(model).__name__.partition('For')[2]}")


@families
def test_cpu_offload(family: str) -> None:
    from accelerate import cpu_offload

    model = merged(family)
    expected = logits(model, pixels(model))
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for name, parameter in model.named_parameters() if "merger" in name)
    torch.testing.assert_close(logits(model, pixels(model)), expected)


@families
@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated in favour of torchao, which is another package
def test_dynamic_quantization(family: str) -> None:
    model = merged(family)
    expected = logits(model, pixels(model))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert not isinstance(next(m for n, m in quantized.named_modules() if n.endswith("merger.motion.map")), nn.Linear)
    found = logits(quantized, pixels(model))
    assert found.isfinite().all() and nn.functional.cosine_similarity(found, expected).min() > 0.9


@families
@pytest.mark.parametrize("first", ["merge", "adapt"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks for a name that transformers deprecates
def test_lora_on_every_linear_layer(family: str, first: str) -> None:
    """Merged before or after PEFT, every adapter learns, those of the mergers too."""
    from peft import LoraConfig, get_peft_model

    model = lively(family)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    if first == "merge":
        sttm.apply(model, compute=0.6, learned=True)
        model = get_peft_model(model, config)
        assert any("merger" in name and "lora_A" in name for name, _ in model.named_parameters())
    else:
        model = get_peft_model(model, config)
        sttm.apply(model, compute=0.6, learned=True)
    assert api.is_merged(model) and sttm.macs(model) == api.plan_of(model).macs_after
    stir(model)  # at its start, motion has no gradient for what is in front of its map
    model.train()
    # All classes: a single one would leave parts of the head without gradient.
    nn.functional.cross_entropy(answer(model, pixels(model, 5)), torch.arange(5)).backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [name for name in dead if "predictor" not in name] == []
    sttm.remove(model)
    assert not api.is_merged(model)


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@families
@pytest.mark.parametrize("shards", ["block", "linear"])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # transformers views what a Linear returns
def test_fully_sharded(family: str, shards: str, one_process: None) -> None:
    from torch.distributed.fsdp import fully_shard

    model = merged(family)
    expected = logits(model, pixels(model))
    for module in model.modules():
        if isinstance(module, nn.Linear) if shards == "linear" else type(module).__name__.endswith("Layer"):
            fully_shard(module)
    fully_shard(model)
    torch.testing.assert_close(logits(model, pixels(model)), expected)
    answer(model, pixels(model)).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if ".merger." in n]
    assert grads and all(grad is not None for grad in grads)


@exported
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and tracing warns of every shape
def test_jit_trace(family: str, learned: bool) -> None:
    model = merged(family, learned)
    with torch.no_grad():
        traced = torch.jit.trace(model, (pixels(model),), strict=False, check_trace=False)
        found = traced(pixels(model, seed=3))
    found = said(SimpleNamespace(**found)) if isinstance(found, dict) else found[0]
    torch.testing.assert_close(found, logits(model, pixels(model, seed=3)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@exported
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx(family: str, learned: bool, tmp_path: Path) -> None:
    import onnxruntime

    model = merged(family, learned)
    model.set_attn_implementation("eager") if not family.startswith("timesformer") else None

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = answer(self.model, clips)
            return out

    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        Logits().eval(), (pixels(model),), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=({0: batch},)
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for clips in (pixels(model), pixels(model, 3, seed=5)):
        (found,) = session.run(None, {session.get_inputs()[0].name: clips.numpy()})
        np.testing.assert_allclose(found, logits(model, clips).numpy(), rtol=1e-4, atol=1e-4)


@families
def test_export(family: str) -> None:
    model = merged(family)
    batch = torch.export.Dim("batch", min=2, max=64)
    name = model.main_input_name
    exported = torch.export.export(
        model, (), {name: pixels(model)}, dynamic_shapes={name: {0: batch}} if family != "vivit" else None
    )
    clips = pixels(model, 3, seed=5) if family != "vivit" else pixels(model, 2, seed=5)
    torch.testing.assert_close(exported.module()(**{name: clips}).logits, logits(model, clips), rtol=1e-4, atol=1e-5)


@families
def test_data_parallel_and_compiled_models(family: str, one_process: None) -> None:
    model = lively(family)
    wrapped = nn.parallel.DistributedDataParallel(model)
    plan = sttm.apply(wrapped, compute=0.6)
    assert api.plan_of(model) is plan and sttm.macs(wrapped) == plan.macs_after
    with sttm.trace(wrapped) as maps:
        torch.testing.assert_close(logits(wrapped, pixels(model)), logits(model, pixels(model)))
    assert len(maps) == 2 * len(plan.mergers)
    sttm.remove(wrapped)
    with pytest.raises(sttm.SttmError, match="before wrapping"):
        sttm.apply(wrapped, compute=0.6, learned=True)
    compiled: Any = torch.compile(model)
    with pytest.raises(sttm.SttmError, match=r"compiled.*sttm\.apply first"):
        sttm.apply(compiled, compute=0.6)
    model.compile()
    with pytest.raises(sttm.SttmError, match=r"compiled.*sttm\.apply first"):
        sttm.apply(model, compute=0.6)


def test_what_is_no_model_says_so() -> None:
    wrong: Any
    for wrong, advice in (
        ("MCG-NJU/videomae-base", r"sttm\.load\('MCG-NJU/videomae-base'\)"),
        (None, "NoneType"),
        (3, "int"),
    ):
        with pytest.raises(sttm.SttmError, match=advice):
            sttm.apply(wrong)


# --- saving -----------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("learned", [False, True])
def test_auto_classes_give_back_the_merged_model(family: str, learned: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    model = merged(family, learned)
    classifiers = auto_class(model)
    model.save_pretrained(tmp_path)
    loaded = classifiers.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and api.plan_of(loaded) == api.plan_of(model)
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    assert AutoConfig.from_pretrained(tmp_path).inner().id2label == model.config.id2label
    half = classifiers.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    base = AutoModel.from_pretrained(tmp_path).eval()
    options = {"skip_predictor": True} if family == "vjepa2" else {}
    with torch.no_grad():
        expected = getattr(model, model.base_model_prefix)(pixels(model), **options)[0]
        assert torch.equal(base(pixels(model), **options)[0], expected)


@pytest.mark.parametrize("family", [name for name in MORE if type(lively(name)).__name__.endswith("Model")])
def test_auto_model_gives_back_merged_features(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = merged(family)
    model.save_pretrained(tmp_path)
    if family == "xclip":  # whose tower no auto class knows
        assert torch.equal(logits(sttm.load(tmp_path), pixels(model)), logits(model, pixels(model)))
        return
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and api.plan_of(loaded) == api.plan_of(model)
    assert torch.equal(logits(loaded, pixels(model)), logits(model, pixels(model)))


def run_without_sttm(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment, check=False
    )


LOAD = """
import sys, transformers
for loader in ("AutoConfig", {!r}, {!r}):
    try:
        getattr(transformers, loader).from_pretrained(sys.argv[1])
        print(loader, "loaded")
    except Exception as error:
        print(loader, "refused", str(error)[:80])
"""


@families
def test_without_sttm_no_folder_passes_for_the_plain_model(family: str, tmp_path: Path) -> None:
    model = merged(family)
    model.save_pretrained(tmp_path)
    outcome = run_without_sttm(LOAD.format(auto_class(model).__name__, type(model).__name__), tmp_path)
    config, auto, _ = outcome.stdout.splitlines()
    assert "refused" in config and "refused" in auto and "model type `sttm`" in config + auto
    # The family's own class reads any config; it warns.
    assert "model of type `sttm`" in outcome.stderr


@pytest.mark.parametrize("order", ["import sttm, transformers", "import transformers, sttm"])
def test_one_import_is_enough(order: str, tmp_path: Path) -> None:
    merged("videomae").save_pretrained(tmp_path)
    code = f"""
import sys
{order}
assert "torch" not in sys.modules or "transformers" in "{order}"
from transformers import AutoModelForVideoClassification
model = AutoModelForVideoClassification.from_pretrained(sys.argv[1])
assert sttm.macs(model) == model._sttm.plan.macs_after
print("merged")
"""
    outcome = run_without_sttm(code, tmp_path)
    assert outcome.stdout.endswith("merged\n"), outcome.stderr


def test_a_folder_without_its_plan_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForVideoClassification

    merged("videomae").save_pretrained(tmp_path)
    (tmp_path / PLAN_FILE).unlink()
    with pytest.raises(sttm.SttmError, match=PLAN_FILE):
        AutoModelForVideoClassification.from_pretrained(tmp_path)


def test_pushed_folders_are_saved_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded, with the network replaced by a copy of the folder."""
    model = merged("videomae")
    pushed: dict[str, str] = {}

    def upload(working_dir: str, *_: Any, **__: Any) -> None:
        pushed.update({path.name: path.read_text() for path in Path(working_dir).glob("*.json")})

    class Hub:
        def create_repo(self, name: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": name})

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr(type(model), "_upload_modified_files", staticmethod(upload))
    model.push_to_hub("someone/merged")
    assert json.loads(pushed["config.json"])["model_type"] == "sttm" and PLAN_FILE in pushed
    pushed.clear()
    model.save_pretrained(tmp_path / "merged", push_to_hub=True, repo_id="someone/merged")
    assert json.loads(pushed["config.json"])["model_type"] == "sttm" and PLAN_FILE in pushed


@families
def test_trainer_checkpoints_come_back_merged(family: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = merged(family)
    name = model.main_input_name
    data = [{name: clip, "labels": number % 5} for number, clip in enumerate(pixels(model, 4))]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, seed=0
    )
    Trainer(model, arguments, train_dataset=data).train()
    loaded = auto_class(model).from_pretrained(tmp_path / "checkpoint-2").eval()
    assert torch.equal(logits(loaded, pixels(model)), logits(model.eval(), pixels(model)))
    # Resumed from the first step, a run ends where the first one did.
    again = merged(family)
    Trainer(again, arguments, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    torch.testing.assert_close(logits(again.eval(), pixels(model)), logits(model, pixels(model)))


@families
def test_accelerate_checkpoints_fit_the_same_merging_only(family: str, tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(merged(family, learned=False))
    accelerator.save_state(str(tmp_path))
    with torch.no_grad():
        expected = logits(model, pixels(model))
        for parameter in model.parameters():
            parameter.mul_(0.5)
    accelerator.load_state(str(tmp_path))
    assert torch.equal(logits(model, pixels(model)), expected)
    plain, otherwise = lively(family), lively(family)
    sttm.apply(otherwise, compute=0.4)
    for other in (plain, otherwise):
        fresh = Accelerator(cpu=True)
        fresh.prepare(other)
        with pytest.raises(RuntimeError, match="merger"):
            fresh.load_state(str(tmp_path))
