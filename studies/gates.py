"""Learned ratios: gates share out the multiply-adds over the blocks, against the hand schedule at equal multiply-adds.

First the gates: the plain model of a seed trains for GATE_STEPS steps with a gate before every block. A gate takes
no token away. It makes the tokens beyond its count small in attention and pooling, softly, so that the count itself has
a gradient. Of that gradient only the part counts that leaves the multiply-adds as they are, and every step ends on the
budget again (a penalty strong enough to hold it drowns the rest). Which tokens are small is drawn anew for every clip,
always evenly in space and time. Then the counts freeze into a plan of STTM mergers, which is tuned from the same model
as all entries of the study `trained`; its STTM is the hand schedule.

How to run, from the project's root, after `python studies/trained.py run --methods sttm`:
    python studies/gates.py run

Legend: B clips, T token frames, S tokens in a frame, N = T*S tokens, L blocks (each with a gate), K classes.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import arena
import torch
from runs import Entry, Row, Run, main, path_of, rows_of
from tables import LEGEND, Group, difference, groups, markdown, origin
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sttm
from sttm.backbones import backbone_of
from sttm.backbones.base import Ledger, Page, Seat
from sttm.errors import SttmError
from sttm.merging.merger import TokenMerger
from sttm.merging.selectors import ZOrder
from sttm.merging.tokens import grid_positions
from sttm.patching.api import install
from sttm.patching.edits import Patch
from sttm.patching.plan import MergerPlan, Plan, count_macs
from sttm.patching.schedule import make_plan
from sttm.patching.search import TOLERANCE

VARIANT = "learned ratios"
COMPUTES = (0.5, 0.35)
ENTRIES = [Entry("sttm", compute, VARIANT) for compute in COMPUTES]

GATE_STEPS = 300
GATE_RATE = 0.05  # peak, of Adam on the logits of the gates
SLOPES = (1 / 4, 1 / 16)  # over which share of the tokens a gate goes from one to nothing: at first, at last
TINY = 1e-5  # size of a token that is beyond the count
MERGES = 0.05  # a gate that takes at least this share of the tokens becomes a merger
WINDOW = 2  # frames that the first merger joins, as in the hand schedule


class Gated(nn.Module):
    """A plain model in which the gate before each block decides how many tokens count from there on.

    Counts fall with depth: each gate leaves the share sigmoid(logit) of what the gates before it left.
    """

    def __init__(self, model: nn.Module, compute: float) -> None:
        super().__init__()
        self.model, self.backbone, self.slope = model, backbone_of(model), SLOPES[0]
        self.clip = self.backbone.clip_shape(model)
        self.grid = self.backbone.grid(model, self.clip)
        T, S, depth = self.grid.frames, self.grid.tokens, len(self.backbone.blocks(model))
        self.budget = compute * sttm.macs(model)
        self.ledger = Ledger(depth)
        seats = [Seat(block, block, T, S) for block in range(depth)]
        self.backbone.weigh_by_size(Patch(), model, seats, self.ledger)
        self.register_buffer("position_TS3", grid_positions(T, self.grid.height, self.grid.width))
        self.register_buffer("rank_N", nested_ranks(self.position_TS3.flatten(0, 1)))
        self.logit_L = nn.Parameter(torch.zeros(depth))
        self._start_even()

    def counts(self) -> Tensor:
        """How many tokens count in each block: [L], real numbers."""
        return len(self.rank_N) * self.logit_L.sigmoid().cumprod(0)

    def macs(self) -> Tensor:
        """Multiply-adds of one clip, were the counts frozen: all formulas are polynomials, so they take real counts.

        A gate that takes less than MERGES needs a merger only in part, which lets the cost of a merger push it away.
        """
        T, S = self.grid.frames, self.grid.tokens
        with torch.device("meta"):
            merger = TokenMerger(self.backbone.width(self.model), T // WINDOW, 1, frames_in=T, learned=True)
        total, before = self.backbone.outer_macs(self.model, self.clip, T, S), T * S
        for after in self.counts():
            merger.tokens = after / merger.frames
            frames = T if before > (1 - MERGES) * T * S else merger.frames
            needed = ((1 - after / before) / MERGES).clamp(max=1)
            total = total + needed * merger.macs(frames, before / frames)
            total = total + self.backbone.block_macs(self.model, self.grid, 1, after)
            before = after
        return total

    def forward(self, pixels_BT3HW: Tensor) -> Tensor:
        """Logits [B K]. While training, a turn of the ranks gives every token of every clip any rank by chance."""
        B, N, T = len(pixels_BT3HW), len(self.rank_N), self.grid.frames
        turn_B1 = torch.rand(B, 1, device=self.rank_N.device) * N * self.training
        rank_BN = (self.rank_N + turn_B1) % N
        for block, count in enumerate(self.counts()):
            # From one to nothing along a slope through the count; at a count of N all are one.
            mask_BN = (count / N + (count - rank_BN) / (self.slope * N)).clamp(TINY, 1)
            position_BTS3 = self.position_TS3.expand(B, -1, -1, -1)
            self.ledger.write(block, Page(mask_BN.unflatten(1, (T, -1)), position_BTS3, self.grid.prefix), None)
        return self.model(pixels_BT3HW).logits

    def to_budget(self) -> None:
        """Moves the logits to the budget by the shortest way, `across_L`, on which no gradient is to move them."""
        for _ in range(3):
            miss = self.macs() / self.budget - 1
            (slope_L,) = torch.autograd.grad(miss, self.logit_L)
            self.logit_L.data -= miss.detach() * slope_L / (slope_L @ slope_L)
        self.across_L = slope_L / slope_L.norm()

    def along_budget(self, logit_L: nn.Parameter) -> None:
        """Leaves of the gradient the part that keeps the multiply-adds as they are."""
        assert logit_L.grad is not None
        logit_L.grad -= (logit_L.grad @ self.across_L) * self.across_L

    @torch.no_grad()
    def _start_even(self) -> None:
        """All gates take the same share, and the budget is met."""
        low, high = -10.0, 10.0
        for _ in range(30):
            self.logit_L.fill_((low + high) / 2)
            low, high = ((low + high) / 2, high) if self.macs() <= self.budget else (low, (low + high) / 2)


def nested_ranks(position_N3: Tensor) -> Tensor:
    """A rank for every token, such that the first few of any number lie evenly in space and time: float [N].

    Those of a regular order whose numbers, read backwards in binary, are smallest (van der Corput).
    """
    order_N = ZOrder()(position_N3[None, None])[0, 0]
    bits = (len(order_N) - 1).bit_length()
    backwards_N = torch.tensor([int(f"{place:0{bits}b}"[::-1], 2) for place in range(len(order_N))])
    rank_N = torch.empty(len(order_N))
    rank_N[order_N[backwards_N.argsort()]] = torch.arange(len(order_N), dtype=torch.float32)
    return rank_N


def learn(run: Run) -> dict[str, Any]:
    """Trains gates and model together; the counts found, and what that took."""
    steps = GATE_STEPS
    started = time.perf_counter()
    model = arena.plain(run.seed, run.dataset, run.scale, run.entry.frames)
    gated = Gated(model, run.entry.compute).to(arena.device()).train()
    gated.to_budget()
    gated.logit_L.register_post_accumulate_grad_hook(gated.along_budget)
    gate_optimizer = torch.optim.Adam([gated.logit_L], lr=GATE_RATE, betas=(0.9, 0.98))
    gate_optimizer.param_groups[0]["peak"] = GATE_RATE
    optimizers = [*arena.optimizers_of(gated.model, arena.tuning_rates(run.scale)), gate_optimizer]
    torch.manual_seed(run.seed)
    for step in range(steps):
        pixels_BT3HW, classes_B = arena.batch(run.dataset, run.seed, run.scale, run.entry.frames, step)
        gated.slope = SLOPES[0] + (SLOPES[1] - SLOPES[0]) * step / steps
        with arena.autocast():
            logits_BK = gated(pixels_BT3HW)
        loss = cross_entropy(logits_BK.float(), classes_B)
        arena.advance(loss, optimizers, gated, arena.shape_of_rate(step, steps))
        gated.to_budget()
    with torch.no_grad():
        miss, counts = (gated.macs() / gated.budget - 1).item(), [round(count, 2) for count in gated.counts().tolist()]
    return dict(counts=counts, miss=round(miss, 4), steps=steps, seconds=round(time.perf_counter() - started, 1))


def frozen(model: nn.Module, counts: Sequence[float], compute: float) -> Plan:
    """The plan of STTM mergers with those counts, all in proportion, and the last filled up to the budget."""
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


def worked(run: Run) -> Row:
    """The gate phase; then its plan in the plain model as it was, tuned and tested as every entry is."""
    gates = learn(run)
    model = arena.plain(run.seed, run.dataset, run.scale, run.entry.frames)
    plan = frozen(model, gates["counts"], run.entry.compute)
    install(model, plan)
    seconds = arena.tune(model, run.dataset, run.seed, run.scale, run.entry.frames)
    right = arena.answers(model, run.dataset, run.split, run.scale, run.entry.frames)
    row = run.row(model, right, arena.SCALES[run.scale].tuning[run.dataset], seconds)
    return row | dict(gates=gates, kept=kept(plan, len(gates["counts"])))


def kept(plan: Plan, depth: int) -> list[int]:
    """Tokens that each block of a plan sees."""
    seen = [plan.mergers[0].frames_before * plan.mergers[0].tokens_before] * depth
    for merger in plan.mergers:
        seen[merger.layer :] = [merger.frames * merger.tokens] * (depth - merger.layer)
    return seen


def report(scale: str, split: str) -> None:
    """results/gates.md."""
    rows = rows_of("gates", scale, split)
    hands = [row for row in rows_of("trained", scale, split) if row["method"] == "sttm" and not row["variant"]]
    by_hand = groups(hands, "dataset", "compute")
    steps = ", ".join(sorted({str(row["gates"]["steps"]) for row in rows}))
    sections = [
        "STTM with token counts that gates learned, against the hand schedule, trained alike at equal multiply-adds. "
        f"The learned counts cost extra training, which the hand schedule does not: {steps} steps of batch "
        f"{arena.SCALES[scale].batch} for the gates, through a model that keeps all of its tokens, "
        f"before the steps that both get (results/trained.md).",
        LEGEND,
        origin([*rows, *hands], "python studies/gates.py run"),
    ]
    for (dataset, compute), group in groups(rows, "dataset", "compute").items():
        hand = by_hand.get((dataset, compute))
        less = hand and difference(group, hand)
        lines = [(VARIANT, f"{group.gmacs:.4f}", str(len(group.rows)), group.shown, less.shown if less else "")]
        lines += [("hand schedule", f"{hand.gmacs:.4f}", str(len(hand.rows)), hand.shown, "")] if hand else []
        accuracy = markdown(("counts", "GMACs", "seeds", "top-1 (%)", "less the hand schedule"), lines)
        sections += [f"### {dataset}, compute {compute:g}", accuracy, _counts(group, scale, compute)]
    path_of("gates", scale, split, "md").write_text("\n\n".join(sections) + "\n")


def _counts(group: Group, scale: str, compute: float) -> str:
    """Tokens in each block: what the gates ended with, what they froze to, and the hand schedule's."""
    depth = arena.SCALES[scale].depth
    lines = []
    for seed, row in group.seeds.items():
        gates = row["gates"]
        lines.append((f"gates, seed {seed}", *(f"{count:.0f}" for count in gates["counts"]), f"{gates['miss']:+.1%}"))
        lines.append((f"frozen, seed {seed}", *map(str, row["kept"]), ""))
    model = arena.new_model(scale, 1, group.rows[0]["frames"])
    hand = make_plan(backbone_of(model), model, compute, "sttm", learned=True)
    lines.append(("hand schedule", *map(str, kept(hand, depth)), ""))
    return markdown(("tokens in", *(f"block {block}" for block in range(depth)), "multiply-adds off budget"), lines)


if __name__ == "__main__":
    main("gates", __doc__, ENTRIES, worked, report)
