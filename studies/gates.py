"""Learned gates: token counts of the blocks that gates learn, against the schedule at equal multiply-adds.

First the gates: the plain model of a seed trains for GATE_STEPS steps with a gate before every block. A gate removes
no token. It makes the tokens beyond its count small in attention and pooling, softly, so that the count itself has
a gradient. Only the part of that gradient that leaves the multiply-adds as they are is used, and after every step the
counts are projected back to the budget (a penalty strong enough to hold it outweighs the loss). Which tokens are small
is drawn anew for every clip, always evenly in space and time. Then the counts freeze into a plan of STTM mergers, which
is tuned from the same model as all runs of the study `tune`, whose STTM has the schedule.

How to run, from the project's root, after `python studies/tune.py run --methods sttm`:
    python studies/gates.py run

Legend: B clips, T token frames, S tokens in a frame, N = T*S tokens, L blocks (each with a gate), K classes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from harness.pretraining import SCALES, clips_of, plain, tune, tuning_recipe
from harness.runs import Row, Run, folder_of, main, rows_of, tested
from harness.tables import LEGEND, Group, difference, groups, markdown, origin
from harness.training import device, fit, optimizers_of
from torch import Tensor, nn

import sttm
from sttm.backbones import backbone_of
from sttm.errors import SttmError
from sttm.merging.merger import TokenMerger
from sttm.merging.selectors import ZOrder
from sttm.merging.tokens import MergeMap, Tokens, grid_positions
from sttm.patching.api import Installation, install
from sttm.patching.edits import Edits
from sttm.patching.plan import MergerPlan, Plan, count_macs
from sttm.patching.schedule import make_plan
from sttm.patching.search import TOLERANCE
from sttm.patching.state import Key

VARIANT = "learned-gates"
COMPUTES = (0.5, 0.35)
ENTRIES = [dict(method="sttm", compute=compute, variant=VARIANT) for compute in COMPUTES]

GATE_STEPS = 300
GATE_LR = 0.05  # peak, of Adam on the logits of the gates
SLOPES = (1 / 4, 1 / 16)  # over which share of the tokens a gate goes from one to nothing: at first, at last
TINY = 1e-5  # size of a token that is beyond the count
MERGES = 0.05  # a gate that removes at least this share of the tokens becomes a merger
WINDOW = 2  # frames that the first merger joins, as in the schedule


class Gate(nn.Module):
    """Stand where a merger would, keep every token, and give it the size in `size_BTS`."""

    size_BTS: Tensor

    def positions(self) -> None:
        """Return no table of positions: they are made anew for each clip."""

    def forward(self, tokens: Tokens, mapped: bool = False) -> tuple[Tokens, MergeMap | None]:
        return replace(tokens, size_BTS=self.size_BTS), None


class Gated(nn.Module):
    """Wrap a plain model so that the gate before each block decides how many tokens count from there on.

    Counts fall with depth: each gate leaves the share sigmoid(logit) of what the gates before it left.
    """

    def __init__(self, model: nn.Module, compute: float) -> None:
        super().__init__()
        self.model, self.backbone, self.slope = model, backbone_of(model), SLOPES[0]
        self.clip = self.backbone.clip_shape(model)
        self.grid = self.backbone.grid(model, self.clip)
        T, S, depth = self.grid.frames, self.grid.tokens, len(self.backbone.blocks(model))
        self.budget = compute * sttm.macs(model)
        kept = tuple(MergerPlan(block, T, S, T, S) for block in range(depth))
        every = replace(make_plan(self.backbone, model, 1.0), mergers=kept)
        self.gates: list[Gate] = [Gate() for _ in range(depth)]  # modules of the model's blocks
        Installation(self.backbone, model, every, Edits(), Key()).run(list(self.gates))
        self.register_buffer("rank_N", nested_ranks(grid_positions(T, self.grid.height, self.grid.width).flatten(0, 1)))
        self.logit_L = nn.Parameter(torch.zeros(depth))
        self._start_even()

    def counts(self) -> Tensor:
        """Return how many tokens count in each block: [L], real numbers."""
        return len(self.rank_N) * self.logit_L.sigmoid().cumprod(0)

    def macs(self) -> Tensor:
        """Return the multiply-adds of one clip with those counts: the formulas are polynomials and take real numbers.

        A gate that removes less than MERGES needs a merger only in part, which lets the cost of a merger push it away.
        """
        T, S = self.grid.frames, self.grid.tokens
        with torch.device("meta"):
            merger = TokenMerger(self.backbone.width(self.model), T // WINDOW, 1, frames_in=T, learned=True)
        total, before = self.backbone.outer_macs(self.model, self.clip, T, S), T * S
        for after in self.counts():
            merger.tokens = after / merger.frames
            frames = T if before > (1 - MERGES) * T * S else merger.frames
            needed = ((1 - after / before) / MERGES).clamp(max=1)
            total = total + needed * merger.total_macs(frames, before / frames)
            total = total + self.backbone.block_macs(self.model, self.grid, 1, after)
            before = after
        return total

    def forward(self, pixels_BT3HW: Tensor) -> Any:
        """Return the model's output. In training a random rotation of the ranks gives any token of a clip any rank."""
        B, N, T = len(pixels_BT3HW), len(self.rank_N), self.grid.frames
        turn_B1 = torch.rand(B, 1, device=self.rank_N.device) * N * self.training
        rank_BN = (self.rank_N + turn_B1) % N
        for gate, count in zip(self.gates, self.counts(), strict=True):
            # From one to nothing along a slope through the count; at a count of N all are one.
            mask_BN = (count / N + (count - rank_BN) / (self.slope * N)).clamp(TINY, 1)
            gate.size_BTS = mask_BN.unflatten(1, (T, -1))
        return self.model(pixels_BT3HW)

    def to_budget(self) -> None:
        """Project the logits to the budget, along `across_L`; no gradient may move them in that direction."""
        for _ in range(3):
            miss = self.macs() / self.budget - 1
            (slope_L,) = torch.autograd.grad(miss, self.logit_L)
            self.logit_L.data -= miss.detach() * slope_L / (slope_L @ slope_L)
        self.across_L = slope_L / slope_L.norm()

    def along_budget(self, logit_L: nn.Parameter) -> None:
        """Keep only the part of the gradient that leaves the multiply-adds as they are."""
        assert logit_L.grad is not None
        logit_L.grad -= (logit_L.grad @ self.across_L) * self.across_L

    @torch.no_grad()
    def _start_even(self) -> None:
        """Set all gates to the same share, so that the budget is met."""
        low, high = -10.0, 10.0
        for _ in range(30):
            self.logit_L.fill_((low + high) / 2)
            low, high = ((low + high) / 2, high) if self.macs() <= self.budget else (low, (low + high) / 2)


def nested_ranks(position_N3: Tensor) -> Tensor:
    """Return a rank for every token, such that the first few of any number lie evenly in space and time: float [N].

    The ranks are the bit-reversed places in a regular order (van der Corput).
    """
    order_N = ZOrder()(position_N3[None, None])[0, 0]
    bits = (len(order_N) - 1).bit_length()
    backwards_N = torch.tensor([int(f"{place:0{bits}b}"[::-1], 2) for place in range(len(order_N))])
    rank_N = torch.empty(len(order_N))
    rank_N[order_N[backwards_N.argsort()]] = torch.arange(len(order_N), dtype=torch.float32)
    return rank_N


def learn(run: Run) -> dict[str, Any]:
    """Train gates and model together; return the counts found, and what that took."""
    gated = Gated(plain(run.seed, run.dataset, run.scale, run.frames), run.compute).to(device()).train()
    gated.to_budget()
    gated.logit_L.register_post_accumulate_grad_hook(gated.along_budget)
    recipe = replace(tuning_recipe(run.dataset, run.scale), steps=GATE_STEPS)
    gate_optimizer = torch.optim.Adam([gated.logit_L], lr=GATE_LR, betas=(0.9, 0.98))
    optimizers = [*optimizers_of(gated.model, recipe.lrs), gate_optimizer]

    def after_step(step: int) -> None:
        gated.to_budget()
        gated.slope = SLOPES[0] + (SLOPES[1] - SLOPES[0]) * (step + 1) / GATE_STEPS

    clips = clips_of(run.dataset, "train", run.scale)
    seconds = fit(gated, clips, run.frames, run.seed, recipe, optimizers=optimizers, after_step=after_step)
    with torch.no_grad():
        miss, counts = (gated.macs() / gated.budget - 1).item(), [round(count, 2) for count in gated.counts().tolist()]
    return dict(counts=counts, miss=round(miss, 4), steps=GATE_STEPS, seconds=round(seconds, 1))


def frozen(model: nn.Module, counts: Sequence[float], compute: float) -> Plan:
    """Return the plan of STTM mergers with those counts, scaled alike; the last one gets what the budget leaves."""
    backbone = backbone_of(model)
    hand = make_plan(backbone, model, compute, "sttm", learned=True)
    grid = backbone.grid(model, hand.clip_shape)
    windows, layers, left = grid.frames // WINDOW, [], float(grid.frames * grid.tokens)
    for layer, count in enumerate(counts):
        if count <= (1 - MERGES) * left:
            layers, left = [*layers, layer], count

    def share(mergers: Sequence[MergerPlan]) -> float:
        return count_macs(backbone, model, hand, mergers) / hand.macs_before

    def scaled(thousandths: int) -> list[MergerPlan]:
        frames, tokens, mergers = grid.frames, grid.tokens, []
        for layer in layers:
            slots = min(int(counts[layer] * thousandths / 1000 / windows), frames * tokens // windows)
            mergers.append(MergerPlan(layer, frames, tokens, windows, max(1, slots)))
            frames, tokens = windows, max(1, slots)
        return mergers

    thousandths = bisect_right(range(2001), compute, key=lambda number: share(scaled(number))) - 1
    if not layers or thousandths < 0:
        raise SttmError(f"counts {list(counts)} are far above compute={compute:g}; train the gates for longer")
    *head, last = scaled(thousandths)
    room = range(last.frames_before // last.frames * last.tokens_before + 1)
    most = bisect_right(room, compute, lo=1, key=lambda tokens: share([*head, replace(last, tokens=tokens)])) - 1
    mergers = (*head, replace(last, tokens=most))
    if compute - share(mergers) > TOLERANCE:
        raise SttmError(f"counts {list(counts)} end at compute {share(mergers):.3f}, not {compute:g}")
    after = count_macs(backbone, model, hand, mergers)
    return replace(hand, compute=after / hand.macs_before, macs_after=after, mergers=mergers)


def work(run: Run) -> Row:
    """Learn the gates; then put their plan into the plain model as it was, tune it and test it as every run is."""
    gates = learn(run)
    model = plain(run.seed, run.dataset, run.scale, run.frames)
    plan = frozen(model, gates["counts"], run.compute)
    install(model, plan)
    seconds = tune(model, run.dataset, run.seed, run.scale, run.frames)
    steps = tuning_recipe(run.dataset, run.scale).steps
    return tested(run, model, steps, seconds, gates=gates, tokens=tokens_of(plan, len(gates["counts"])))


def tokens_of(plan: Plan, depth: int) -> list[int]:
    """Return the tokens that each block of a plan gets."""
    seen = [plan.mergers[0].frames_before * plan.mergers[0].tokens_before] * depth
    for merger in plan.mergers:
        seen[merger.layer :] = [merger.frames * merger.tokens] * (depth - merger.layer)
    return seen


def report(scale: str, split: str) -> None:
    """Write results/gates/table.md."""
    rows = rows_of("gates", scale, split)
    others = [row for row in rows_of("tune", scale, split) if row["method"] == "sttm" and not row["variant"]]
    scheduled = groups(others, "dataset", "compute")
    steps = ", ".join(sorted({str(row["gates"]["steps"]) for row in rows}))
    sections = [
        "STTM with token counts that gates learned, against the schedule, tuned alike at equal multiply-adds. "
        f"The learned counts cost extra training, which the schedule does not: {steps} steps of batch "
        f"{SCALES[scale].batch} for the gates, through a model that keeps all of its tokens, "
        f"before the steps that both get (results/tune/table.md).",
        LEGEND,
        origin([*rows, *others], "python studies/gates.py run"),
    ]
    for (dataset, compute), group in groups(rows, "dataset", "compute").items():
        ours = scheduled.get((dataset, compute))
        delta = ours and difference(group, ours)
        lines = [(VARIANT, f"{group.gmacs:.4f}", str(len(group.rows)), group.shown, delta.shown if delta else "")]
        lines += [("schedule", f"{ours.gmacs:.4f}", str(len(ours.rows)), ours.shown, "")] if ours else []
        accuracy = markdown(("counts", "GMACs", "seeds", "top-1 (%)", "delta vs schedule"), lines)
        sections += [f"### {dataset}, compute {compute:g}", accuracy, _counts(group, scale)]
    table = folder_of("gates", scale, split) / "table.md"
    table.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _counts(group: Group, scale: str) -> str:
    """Return the table of tokens in each block: of the gates at the end, and of the frozen plan."""
    depth = SCALES[scale].shape.depth
    lines = []
    for seed, row in group.seeds.items():
        gates = row["gates"]
        lines.append((f"gates, seed {seed}", *(f"{count:.0f}" for count in gates["counts"]), f"{gates['miss']:+.1%}"))
        lines.append((f"frozen, seed {seed}", *map(str, row["tokens"]), ""))
    return markdown(("tokens in", *(f"block {block}" for block in range(depth)), "multiply-adds off budget"), lines)


if __name__ == "__main__":
    main("gates", __doc__, ENTRIES, work, report)
