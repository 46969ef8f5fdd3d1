"""From a compute target to a plan: check what is asked for, search the schedule, count the outcome."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from sttm.backbones.base import Backbone, ClipShape
from sttm.errors import SttmError
from sttm.merging import METHODS, spec_of
from sttm.patching.plan import Plan, count_macs
from sttm.patching.search import Search


def check_compute(compute: float) -> float:
    """Return a share of the plain model's multiply-adds, above 0 and at most 1; raise SttmError for anything else."""
    if isinstance(compute, bool) or not isinstance(compute, (int, float)) or not 0 < compute <= 1:
        raise SttmError(f"compute={compute!r} is no share of the plain multiply-adds; give one above 0 and up to 1")
    return float(compute)


def make_plan(
    backbone: Backbone,
    model: nn.Module,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    clip_shape: ClipShape | None = None,
    selector: str | None = None,
    layers: Sequence[int] | None = None,
    window: int | None = None,
    motion: bool | None = None,
    restore: bool = False,
) -> Plan:
    """Return the schedule as `find_plan` does, and warn where a small token grid keeps it far below the target."""
    chosen = (learned, clip_shape, selector, layers, window, motion)
    plan = find_plan(backbone, model, compute, method, *chosen, restore=restore)
    if plan.short_by:
        warnings.warn(
            f"compute={compute:g} is met by {plan.compute:.3f} only, {plan.short_by:.3f} below it: a small token grid "
            "leaves nothing between; ask for another compute, or take the plan as it is",
            stacklevel=3,
        )
    return plan


# Over 40 lines: most are the options and why the schedule is what it is.
def find_plan(
    backbone: Backbone,
    model: nn.Module,
    compute: float = 0.62,
    method: str = "sttm",
    learned: bool = False,
    clip_shape: ClipShape | None = None,
    selector: str | None = None,
    layers: Sequence[int] | None = None,
    window: int | None = None,
    motion: bool | None = None,
    shares: tuple[float, float] | None = None,
    restore: bool = False,
) -> Plan:
    """Return the schedule that brings a model to `compute` of its multiply-adds, from below and within 0.01.

    Two mergers, each leaving the same share of its tokens: a quarter and half way through the blocks where each leaves
    70 % or more, which is where little is merged, and ever earlier where more is, down to the first block and a quarter
    of the way. Many mild merges lose less than few strong ones; what the first leaves is looked at again, and each
    merger costs passes over the tokens that no multiply-add shows. The first merger joins two frames to a window; the
    second fuses within what the first left.

    Baselines get the same two layers, unless their spec (`MethodSpec`) says otherwise, as their papers do, or another
    choice does better for them on validation (random drop merges once, before the first block).

    Args:
        shares: how the reduction is split, as first and last merger's share (see `Search`); left out, equally.
        restore: see `sttm.apply`; always, in a family that joins tokens by their index behind its blocks.

    Raises:
        SttmError: if `compute` is no share, or below what the earliest possible merging can reach.
    """
    compute = check_compute(compute)
    spec = spec_of(method)
    motion = learned and spec.moves if motion is None else motion
    if spec.training != "required":
        # What there is to learn is the motion feature; without it the model trains around the method as it is.
        learned = motion
    clip_shape = _clip(backbone, model, clip_shape)
    _check_selector(backbone, selector)
    if backbone.aligned and method in ("sttm", "random"):
        selector = "stride"
    elif method == "sttm":
        selector = selector or "novelty"
    restore = restore or backbone.restores
    empty = Plan(1.0, 0, 0, (), method, learned, clip_shape, selector, backbone.family, compute, motion, restore)
    before = count_macs(backbone, model, empty, ())
    empty = replace(empty, macs_before=before, macs_after=before)
    if compute == 1:
        return empty
    _check_method(backbone, model, empty)
    _check_places(backbone, model, empty, layers, window)
    found = Search(backbone, model, empty, layers, window, shares or (1, 1)).best()
    after = count_macs(backbone, model, empty, found)
    return replace(empty, compute=after / before, macs_after=after, mergers=found)


def plain_macs(backbone: Backbone, model: nn.Module, clip_shape: ClipShape | None) -> int:
    """Return the multiply-adds of one clip through the plain model."""
    empty = Plan(1.0, 0, 0, (), "sttm", False, _clip(backbone, model, clip_shape))
    return count_macs(backbone, model, empty, ())


def check_choice(backbone: Backbone, model: nn.Module, plan: Plan) -> None:
    """Raise SttmError if the method or the selector of a plan is none for this model."""
    _check_selector(backbone, plan.selector)
    if plan.mergers:
        _check_method(backbone, model, plan)


def _check_selector(backbone: Backbone, selector: str | None) -> None:
    if backbone.aligned and selector not in (None, "stride"):
        raise SttmError(f"{backbone.family} attends over time at each place; give selector='stride', not {selector!r}")


def _check_method(backbone: Backbone, model: nn.Module, empty: Plan) -> None:
    frames, pooling = backbone.grid(model, empty.clip_shape).frames, backbone.pooling(model)
    method, family, spec = empty.method, backbone.family, spec_of(empty.method)
    if backbone.aligned and frames > 1 and not spec.aligned:
        wrong = f"{family} attends over time at each place, which {method} does not keep"
        allowed = [name for name in METHODS if spec_of(name).aligned]
    elif pooling is not None and pooling.reads == "first" and spec.drops:
        wrong = f"this {family} model classifies by its first token, which {method} may drop"
        allowed = [name for name in METHODS if not spec_of(name).drops]
    elif empty.restore and spec.drops:
        wrong = f"{method} leaves tokens out, for which nothing can come back"
        allowed = [name for name in METHODS if not spec_of(name).drops]
    elif (frames == 1 or backbone.pictures) and (spec.whole_frames or spec.reads == "pixels"):
        wrong = f"{method} compares or leaves out frames and this {family} model has one at a time"
        allowed = [name for name in METHODS if not spec_of(name).whole_frames and spec_of(name).reads != "pixels"]
    elif spec.inside != "none" and backbone.layer(backbone.blocks(model)[0]).norm is None:
        wrong = f"{method} merges inside a block, by what its attention computes, which {family} does not show"
        allowed = [name for name in METHODS if spec_of(name).inside == "none"]
    else:
        return
    raise SttmError(f"{wrong}; choose one of {', '.join(allowed)}")


def _check_places(
    backbone: Backbone, model: nn.Module, empty: Plan, layers: Sequence[int] | None, window: int | None
) -> None:
    if spec_of(empty.method).whole_frames and (layers is not None or window is not None):
        raise SttmError(f"{empty.method} chooses its own layers; leave layers and window out")
    depth, frames = len(backbone.blocks(model)), backbone.grid(model, empty.clip_shape).frames
    if layers is not None and (not layers or list(layers) != sorted(set(layers) & set(range(depth)))):
        raise SttmError(
            f"layers={list(layers)} are not blocks of this {backbone.family} model to merge in; give numbers from "
            f"0 to {depth - 1} that rise, such as [{depth // 4}, {depth // 2}]"
        )
    if window is not None and (window < 1 or frames % window):
        divisors = ", ".join(str(n) for n in range(1, frames + 1) if frames % n == 0)
        raise SttmError(f"window={window} does not divide the {frames} token frames; choose one of {divisors}")


def _clip(backbone: Backbone, model: nn.Module, clip_shape: ClipShape | None) -> ClipShape:
    if clip_shape is None:
        return backbone.clip_shape(model)
    try:
        frames, channels, height, width = (operator.index(length) for length in clip_shape)
    except (TypeError, ValueError):
        wrong = f"clip_shape={clip_shape!r} is not (frames, channels, height, width)"
        raise SttmError(f"{wrong}; give those four whole numbers") from None
    return frames, channels, height, width
