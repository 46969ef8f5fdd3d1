"""Calibrate: the schedule as it is against the one that `sttm.calibrate` fits to a checkpoint, off the shelf.

The checkpoint is the plain model that comes with the package. The clips are synthetic ones of a seed of their own:
plans are chosen on sets of 32 clips of the validation part, one set a seed and no labels, and tested on the test part.
`metrics` asks what 32 clips should be compared by: it tests every plan, and draws many sets on which each metric picks.

How to run, from the project's root (what is done is not done again):
    python studies/calibrate.py run
    python studies/calibrate.py metrics
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import combinations, product

import numpy as np
import torch
from harness.data import Dataset, synthetic_settings
from harness.runs import Row, Run, carry_out, folder_of, parser_of, rows_of, write_report
from harness.tables import groups, markdown, origin
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, log_softmax

import sttm
from sttm.backbones import backbone_of
from sttm.calibration import calibration, distances
from sttm.data.datasets.video_set import read_split
from sttm.models import load_with_preprocess
from sttm.patching import api
from sttm.patching.plan import Plan
from sttm.patching.schedule import find_plan
from sttm.synth.videos import SynthSettings

MODEL = "sttm-motion-plain"
CLIPS = Dataset(synthetic=SynthSettings(kind="motion", clips=1_400, seed=31, train=0, validation=0.3, test=0.7))
METHODS = ("sttm", "rlt", "tome", "pitome", "sta", "dpcknn", "random")
COMPUTES = (0.62, 0.5, 0.4, 0.3)
SET = 32  # clips that a plan is chosen on
DRAWS = 400  # sets of that many clips, for the metrics


@cache
def clips_of(split: str) -> tuple[Tensor, Tensor]:
    """Return the pixels of a split as the model takes them [N, T, 3, H, W], and the classes [N]."""
    _, preprocess = load_with_preprocess(MODEL)
    assert CLIPS.synthetic is not None
    videos = read_split(synthetic_settings("calibrate", CLIPS.synthetic), split).videos
    pixels = [preprocess(video.read(preprocess.sampling)[0].frames_TCHW)[0] for video in videos]
    return torch.stack(pixels), torch.tensor([video.label for video in videos])


@torch.no_grad()
def logits_of(model: torch.nn.Module, pixels: Tensor) -> Tensor:
    return torch.cat([model(some).logits for some in pixels.split(50)])


def work(run: Run) -> Row:
    """Merge the model by its default plan, or by that of the calibration set of the seed, and test it."""
    model, more, started = sttm.load(MODEL), {}, time.perf_counter()
    if run.variant == "calibrated":
        own = clips_of("validation")[0][run.seed * SET : (run.seed + 1) * SET]
        found = calibration(model, own, run.compute, run.method)
        more = dict(candidates=found.candidates, kept_default=found.agreement == found.default)
    elif run.method != "plain":
        sttm.apply(model, run.compute, run.method)
    seconds = time.perf_counter() - started
    pixels, classes = clips_of("test")
    predicted = logits_of(model, pixels).argmax(-1).numpy()
    plan = [] if run.method == "plain" else [[m.layer, m.frames, m.tokens] for m in api.plan_of(model).mergers]
    return run.row(model, predicted, classes.numpy(), seconds, steps=0, mergers=plan, **more)


def report(scale: str, split: str) -> None:
    """Write results/calibrate/table.md."""
    rows = rows_of("calibrate", scale, split)
    found = groups(rows, "method", "variant", "compute")
    plain = found["plain", "", 1.0].top1
    sections = [
        f"Points of top-1 lost against the plain model ({100 * plain:.1f} %, {rows[0]['clips']} clips), off the shelf: "
        f"by the default plan, and by plans chosen on {SET} other clips without labels (mean and deviation over sets).",
        origin(rows, "python studies/calibrate.py run"),
    ]
    for compute in COMPUTES:
        lines = []
        for method in METHODS:
            if (method, "", compute) in found and (method, "calibrated", compute) in found:
                default, chosen = found[method, "", compute], found[method, "calibrated", compute]
                kept = sum(row["kept_default"] for row in chosen.rows)
                name = f"**{method}**" if method == "sttm" else method
                lost = f"{100 * (plain - chosen.top1):.1f} ± {100 * chosen.deviation:.1f}"
                lines.append((name, f"{100 * (plain - default.top1):.1f}", lost,
                              f"{kept} of {len(chosen.rows)}", f"{chosen.rows[0]['seconds']:.0f}"))  # fmt: skip
        heads = ("method", "lost by default", "lost calibrated", "sets that kept the default", "seconds a calibration")
        if lines:
            sections += [f"### compute {compute:g}", markdown(heads, lines)]
    folder = folder_of("calibrate", scale, split)
    (folder / "table.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


# --- what to compare plans by -----------------------------------------------------------------------------------------


def divergence(one_NK: Tensor, other_NK: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the KL divergence of the class probabilities of each clip: [N]."""
    one_NK, other_NK = (log_softmax(logits_NK / temperature, -1) for logits_NK in (one_NK, other_NK))
    return kl_div(other_NK, one_NK, reduction="none", log_target=True).sum(-1)


def _cosine(plain_NK: Tensor, merged_NK: Tensor) -> Tensor:
    plain_NK, merged_NK = (logits_NK - logits_NK.mean(-1, keepdim=True) for logits_NK in (plain_NK, merged_NK))
    return 1 - cosine_similarity(plain_NK, merged_NK, dim=-1)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distance of logits": distances,
    "1 - cosine of logits": _cosine,
    "KL from plain": divergence,
    "KL from plain, temperature 4": lambda plain_NK, merged_NK: divergence(plain_NK, merged_NK, 4.0),
    "KL from merged": lambda plain_NK, merged_NK: divergence(merged_NK, plain_NK),
    "other class": lambda plain_NK, merged_NK: (plain_NK.argmax(-1) != merged_NK.argmax(-1)).float(),
}


def plans(model: torch.nn.Module, method: str, compute: float) -> list[Plan]:
    """Return every plan of up to two mergers, and three in front, that meets the compute; the default is the first."""
    backbone, found = backbone_of(model), []
    depth = len(backbone.blocks(model))
    layers = [None, *((a,) for a in range(depth)), *combinations(range(depth), 2), (0, 1, 2)]
    for where, window in product(layers, (None, 1, 4)):
        for shares in [None] if where is not None and len(where) == 1 else [None, (2.0, 1.0), (1.0, 2.0)]:
            try:
                plan = find_plan(backbone, model, compute, method, layers=where, window=window, shares=shares)
            except sttm.SttmError:
                continue
            if not plan.short_by and all(plan.mergers != other.mergers for other in found):
                found.append(plan)
    return found


def metrics() -> None:
    """Write results/calibrate/metrics.md."""
    (pixels, classes), model, sections = clips_of("test"), sttm.load(MODEL), []
    plain_NK, rng = logits_of(model, pixels), np.random.default_rng(0)
    for method, compute in product(("sttm", "tome"), (0.4, 0.3)):
        merged: list[Tensor] = []
        for plan in plans(model, method, compute):
            api.install(model, plan)
            merged.append(logits_of(model, pixels))
            api.remove(model)
        top1_P = torch.tensor([float((logits_NK.argmax(-1) == classes).float().mean()) for logits_NK in merged])
        told = f"{len(merged)} plans; the best has {100 * top1_P.max():.1f} %, the default {100 * top1_P[0]:.1f} %"
        sections += [f"### {method}, compute {compute:g}: {told}", _picked(plain_NK, merged, top1_P, rng)]
    head = (
        f"Top-1 of the plan that each metric picks on {SET} clips without labels, mean over {DRAWS} sets, and the 5 % "
        "of sets that do worst; guarded: the default stays unless the pick is better by more than its standard error. "
        "Written by `python studies/calibrate.py metrics`."
    )
    (folder_of("calibrate") / "metrics.md").write_text("\n\n".join([head, *sections]) + "\n", encoding="utf-8")


def _picked(plain_NK: Tensor, merged: list[Tensor], top1_P: Tensor, rng: np.random.Generator) -> str:
    sets = [torch.from_numpy(rng.choice(len(plain_NK), SET, replace=False)) for _ in range(DRAWS)]
    lines = []
    for name, metric in METRICS.items():
        value_PN = torch.stack([metric(plain_NK, merged_NK) for merged_NK in merged])
        picked, guarded = [], []
        for index_S in sets:
            value_PS = value_PN[:, index_S]
            best = int(value_PS.mean(1).argmin())
            gain_S = value_PS[0] - value_PS[best]
            picked.append(float(top1_P[best]))
            guarded.append(float(top1_P[best if gain_S.mean() > gain_S.std() / SET**0.5 else 0]))
        shown = [f"{100 * np.mean(of):.1f} ({100 * np.quantile(of, 0.05):.1f})" for of in (picked, guarded)]
        lines.append((name, *shown))
    return markdown(("metric", "picked (worst 5 %)", "guarded (worst 5 %)"), lines)


def main() -> None:
    if sys.argv[1:2] == ["metrics"]:
        torch.set_num_threads(1)
        metrics()
        return
    parser = parser_of(__doc__, "motion", seeds="0,1,2,3,4")
    options = parser.parse_args()
    common = dict(study="calibrate", dataset="motion", frames=16, optimizer="")
    seeds, wanted = [int(seed) for seed in options.seeds.split(",")], (options.methods or ",".join(METHODS)).split(",")
    computes = [float(compute) for compute in options.compute.split(",")] if options.compute else COMPUTES
    runs = [Run(**common)]
    for compute, method in product(computes, wanted):
        runs.append(Run(**common, method=method, compute=compute))
        runs += [Run(**common, method=method, compute=compute, variant="calibrated", seed=seed) for seed in seeds]
    if options.what == "run":
        carry_out(runs, work, options.processes, options.threads)
    write_report(report, "calibrate", "small", options.split)


if __name__ == "__main__":
    main()
