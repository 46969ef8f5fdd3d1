"""Parts that the studies share: runs and their rows, variants, gates, synthetic clips, the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.errors import SttmError
from sttm.patching.api import plan_of


def test_a_run_that_is_done_is_known_again(study: Any) -> None:
    runs = study("harness.runs")
    run = runs.Run("tune", "scene", "sttm", 0.5, seed=1)
    done = dict(
        dataset="scene", method="sttm", compute=0.5, variant="", frames=8, seed=1, optimizer="muon", epochs=None
    )
    assert run.is_in([done]) and not run.is_in([])
    for change in (
        dict(seed=2), dict(compute=0.62), dict(variant="soft"), dict(frames=16), dict(dataset="motion"),
        dict(optimizer="adamw"), dict(epochs=48.0),
    ):  # fmt: skip
        assert not run.is_in([done | change])
        assert runs.row_id(done | change) != runs.row_id(done)


def test_variants_meet_the_budget_and_learn(study: Any) -> None:
    training, variants, shape = study("harness.training"), study("harness.variants"), small(study)
    pixels = torch.randn(1, 8, 3, 48, 48)
    seen = set()
    for variant in ("", *variants.MERGERS, *variants.ARGUMENTS):
        torch.manual_seed(0)
        model = training.new_model(shape, 16).train()
        variants.put_in(model, "sttm", 0.5, variant)
        assert 0.49 <= plan_of(model).compute <= 0.5, variant
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "merger" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        torch.manual_seed(0)
        answer = model(pixels).logits.detach()
        assert answer.isfinite().all(), variant
        seen.add(round(float(answer.sum()), 5))
        sttm.remove(model)
    assert len(seen) == 1 + len(variants.MERGERS) + len(variants.ARGUMENTS)  # each computes something else


def test_gates_hold_their_budget_and_freeze_into_a_plan_of_it(study: Any) -> None:
    training, gates, shape = study("harness.training"), study("gates"), small(study)
    torch.manual_seed(0)
    gated = gates.Gated(training.new_model(shape, 16), 0.5).train()
    gated.logit_L.data += torch.tensor([1.0, -1.0, 0.5, 0.0])
    gated.to_budget()
    assert float(gated.macs().detach() / gated.budget) == pytest.approx(1, abs=0.01)
    gated(torch.randn(2, 8, 3, 48, 48)).logits.square().sum().backward()
    assert gated.logit_L.grad.abs().min() > 0
    counts = gated.counts().tolist()
    assert counts == sorted(counts, reverse=True) and counts[0] <= 256
    plan = gates.frozen(training.new_model(shape, 16), counts, 0.5)
    assert 0.49 <= plan.compute <= 0.5
    seen = gates.tokens_of(plan, 4)
    assert all(abs(frozen / count - 1) < 0.1 for frozen, count in zip(seen, counts, strict=True))


def test_clips_reversed_and_mirrored_change_their_class_and_back(study: Any) -> None:
    synthetic = study("harness.synthetic")
    for kind in ("motion", "scene"):
        for change in synthetic.changed_classes(kind):
            assert torch.equal(change[change], torch.arange(len(change)))
    mirrored, backwards = synthetic.changed_classes("motion")
    names = synthetic.MOTION_CLASSES
    assert names[mirrored[names.index("Moving something left")]] == "Moving something right"
    assert names[backwards[names.index("Moving something up")]] == "Moving something down"


def test_every_clip_comes_once_an_epoch(study: Any) -> None:
    training = study("harness.training")
    steps = [training.order(seed=3, step=step, batch=8, length=40) for step in range(10)]
    for epoch in (steps[:5], steps[5:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(40))
    assert not np.array_equal(np.concatenate(steps[:5]), np.concatenate(steps[5:]))
    factors = [training.lr_factor(step, 100) for step in range(100)]
    assert max(factors) == 1 and factors.index(1) == 9 and factors[-1] < 0.01 and factors[0] == pytest.approx(0.1)


def test_optimizers_share_out_all_parameters(study: Any) -> None:
    training = study("harness.training")
    model = training.new_model(small(study), 4)
    sttm.apply(model, compute=0.5, learned=True)
    every = {id(parameter) for parameter in model.parameters()}
    mergers = {id(p) for name, p in model.named_parameters() if ".merger." in name}
    for name, count in (("muon", 2), ("adamw", 1)):
        found = training.optimizers_of(model, (0.02, 1e-3), name)
        ids = [id(p) for optimizer in found for group in optimizer.param_groups for p in group["params"]]
        assert len(found) == count and len(ids) == len(every) and set(ids) == every
        others = {id(p) for group in found[-1].param_groups for p in group["params"]}
        assert isinstance(found[-1], torch.optim.AdamW) and mergers <= others
    with pytest.raises(SttmError, match="unknown optimizer 'sgd'; choose muon or adamw"):
        training.optimizers_of(model, (0.02, 1e-3), "sgd")


def test_training_goes_on_from_its_checkpoint_to_the_same_weights(study: Any, tmp_path: Path) -> None:
    training = study("harness.training")

    def run(checkpoint: Path | None, stop: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss_of_step(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            pixels = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            return (model(pixels) - pixels.sum(1, keepdim=True)).square().mean()

        optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1)]
        training.train(model, loss_of_step, 300, optimizers, checkpoint=checkpoint)
        return model.weight.detach()

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "model.pt", stop=270)
    assert torch.equal(run(tmp_path / "model.pt"), whole)


def small(study: Any) -> Any:
    return study("harness.pretraining").SCALES["small"].shape
