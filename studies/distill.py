"""Distil: what `sttm distill` wins back of a plain model's answers, on clips that it never saw.

The plain model that comes with the package, merged, adapted on 300 synthetic videos without labels, and compared with
itself on 500 others; a tenth of the 300, which the command itself holds out, are too few to compare recipes by.

How to run, from the project's root (a minute a run on one core; what is done is not done again):
    python studies/distill.py run
    python studies/distill.py table
"""

from __future__ import annotations

import shutil
from functools import cache
from statistics import mean, stdev
from unittest.mock import patch

import torch
from harness.data import CACHE, Dataset, synthetic_settings
from harness.runs import Row, Run, folder_of, main, rows_of
from harness.tables import Group, groups, markdown, origin
from torch import Tensor, nn
from torch.nn.functional import log_softmax

import sttm
from sttm import models
from sttm.calibration.agreement import Agreement
from sttm.data.datasets.video_set import read_split
from sttm.merging import motion
from sttm.synth.videos import SynthSettings
from sttm.training.distill import Distillation, distill

MODEL = "sttm-motion-plain"
CLIPS = Dataset(synthetic=SynthSettings(kind="motion", clips=800, seed=41, train=0.375, validation=0, test=0.625))
STEPS, BATCH, LR = 150, 8, 5e-4
#: What the variants of a run are.
TOLD = {
    "": "learned mergers, as they are",
    "inputs-times-1": "the same, the inputs of the motion map not multiplied",
    "off-the-shelf": "mergers without parameters: the backbone adapts to them",
    "lr-1e-4": "the learned ones at the command's own rate, a fifth",
}
WANTED = [(0.15, variant) for variant in TOLD] + [(0.3, variant) for variant in TOLD if variant != "inputs-times-1"]
ENTRIES = [dict(method="sttm", compute=compute, variant=variant, optimizer="adamw", frames=16)
           for compute, variant in WANTED]  # fmt: skip
HEADS = ("variant", "what it is", "seeds", "agreement before (%)", "after", "points a minute", "KL before", "after",
         "top-1 after (%)")  # fmt: skip


@cache
def clips() -> tuple[Tensor, Tensor]:
    """Return the pixels of the test clips as the model takes them [N, T, 3, H, W], and their classes [N]."""
    _, preprocess = models.load_with_preprocess(MODEL)
    assert CLIPS.synthetic is not None
    videos = read_split(synthetic_settings("distill", CLIPS.synthetic), "test").videos
    pixels = [preprocess(video.read(preprocess.sampling)[0].frames_TCHW)[0] for video in videos]
    return torch.stack(pixels), torch.tensor([video.label for video in videos])


@torch.no_grad()
def answers(model: nn.Module) -> Tensor:
    """Return the logarithms of the class probabilities of the test clips: [N, K]."""
    return torch.cat([log_softmax(model.eval()(some).logits, -1) for some in clips()[0].split(50)])


def work(run: Run) -> Row:
    """Merge the plain model, distil it by the command's own function, and compare both with the plain one."""
    assert CLIPS.synthetic is not None
    data, out = synthetic_settings("distill", CLIPS.synthetic), CACHE / "runs" / "distill" / run.variant
    shutil.rmtree(out, ignore_errors=True)
    learned, gain = run.variant != "off-the-shelf", 1 if run.variant == "inputs-times-1" else motion.GAIN
    lr = Distillation.lr if run.variant == "lr-1e-4" else LR
    assert data.train is not None
    wanted = Distillation(
        MODEL, data.train.list, out, data.root, compute=run.compute, learned=learned, steps=STEPS, batch_size=BATCH,
        lr=lr, seed=run.seed, overrides=("data.workers=0",),
    )  # fmt: skip
    plain = answers(models.load(MODEL))
    merged = models.load(MODEL)
    sttm.apply(merged, run.compute, learned=learned)
    before = Agreement.of(plain, answers(merged))
    with patch.object(motion, "GAIN", gain):
        outcome = distill(wanted)
        model = models.load(out)
        found = answers(model)
    after = Agreement.of(plain, found)
    more = dict(before=dict(agreement=before.top1, kl=before.kl), after=dict(agreement=after.top1, kl=after.kl))
    return run.row(model, found.argmax(-1).numpy(), clips()[1].numpy(), outcome["seconds"], steps=STEPS, batch=BATCH,
                   lr=lr, **more)  # fmt: skip


def report(scale: str, split: str) -> None:
    """Write results/distill/table.md."""
    rows = rows_of("distill", scale, split)
    sections = [
        f"`{MODEL}`, merged and distilled by {STEPS} steps of {BATCH} clips at {LR:g}, on {rows[0]['clips']} other "
        "clips: on how many it names the class that the plain model names, and the KL divergence; mean and deviation "
        "over seeds.",
        origin(rows, "python studies/distill.py run"),
    ]
    for (compute,), at_compute in groups(rows, "compute").items():
        lines = []
        for (variant,), group in groups(at_compute.rows, "variant").items():
            shares, kls = _values(group, "agreement"), _values(group, "kl")
            (share, *_), (kl, *_) = shares["before"], kls["before"]
            minutes = [row["seconds"] / 60 for row in group.rows]
            rates = [100 * (after - share) / time for after, time in zip(shares["after"], minutes, strict=True)]
            lines.append((variant or "**sttm**", TOLD[variant], str(len(group.rows)), f"{100 * share:.1f}",
                          _shown([100 * after for after in shares["after"]], 1), _shown(rates, 1), f"{kl:.2f}",
                          _shown(kls["after"], 2), group.shown))  # fmt: skip
        sections += [f"### compute {compute:g}", markdown(HEADS, lines)]
    table = folder_of("distill", scale, split) / "table.md"
    table.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _values(group: Group, name: str) -> dict[str, list[float]]:
    """Return a figure of every run, before and after."""
    return {when: [row[when][name] for row in group.rows] for when in ("before", "after")}


def _shown(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main("distill", __doc__, ENTRIES, work, report, datasets="motion")
