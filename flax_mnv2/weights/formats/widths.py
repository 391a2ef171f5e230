"""Compares networks by the widths of their layers, and finds the depth multiplier from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from flax_mnv2.config import MAX_WIDTH_FACTOR, MobileNetV2Config
from flax_mnv2.layer_plan import LayerPlan
from flax_mnv2.weights.tensors import Path

Widths = Mapping[Path, int]
_GRID = (1.0, *(step / 20 for step in range(1, 41)))  # what to try where no multiplier fits: 1 first, then 0.05 to 2


def norm_widths(plan: LayerPlan) -> dict[Path, int]:
    """Channels of every batch norm of a backbone, by the path of its layer."""
    stem = ("mobilenet_v2", "conv_stem")
    widths = {(*stem, "first_conv"): plan.stem.channels}
    if plan.stem.expand:
        widths[*stem, "expand_1x1"] = plan.stem.channels
    widths |= {(*stem, "conv_3x3"): plan.stem.channels, (*stem, "reduce_1x1"): plan.stem.out_channels}
    for block in plan.blocks:
        module = ("mobilenet_v2", block.name)
        widths[*module, "expand_1x1"] = widths[*module, "conv_3x3"] = block.expanded_channels
        widths[*module, "reduce_1x1"] = block.out_channels
    return widths | {("mobilenet_v2", "conv_1x1"): plan.last_channels}


def plan_differences(*, needed: LayerPlan, found: LayerPlan) -> dict[str, tuple[int | bool, int | bool]]:
    """What differs between two networks, by name: (needed, found)."""
    if len(needed.blocks) != len(found.blocks):
        return {"blocks after the stem": (len(needed.blocks), len(found.blocks))}
    rows = [("conv_stem", needed.stem, found.stem)]
    rows += [(block.name, block, other) for block, other in zip(needed.blocks, found.blocks, strict=True)]
    rows = [
        (f"{name}.{field.name}", getattr(row, field.name), getattr(other, field.name))
        for name, row, other in rows
        for field in dataclasses.fields(row)
    ]
    rows.append(("conv_1x1.out_channels", needed.last_channels, found.last_channels))
    return {name: (value, other) for name, value, other in rows if value != other}


def find_depth_multiplier(base: MobileNetV2Config, widths: Widths) -> float | None:
    """The shortest decimal at which ``base`` has ``widths``; None if there is none, or no widths are known.

    Every width grows with the multiplier, so those that fit are an interval, whose ends bisection finds.
    """

    def compare(multiplier: float) -> tuple[bool, bool]:
        found = norm_widths(base.replace(depth_multiplier=multiplier).layer_plan)
        pairs = [(found[path], width) for path, width in widths.items() if path in found]
        return all(ours >= theirs for ours, theirs in pairs), any(ours > theirs for ours, theirs in pairs)

    low = _smallest(lambda multiplier: compare(multiplier)[0])
    high = _smallest(lambda multiplier: compare(multiplier)[1])
    if not widths or low >= high:
        return None
    decimals = (round((low + high) / 2, digits) for digits in range(17))
    return next((decimal for decimal in decimals if low <= decimal < high), low)


def nearest_depth_multiplier(base: MobileNetV2Config, widths: Widths) -> float:
    """The multiplier at which most of ``widths`` agree, for a message about the others."""

    def agreeing(multiplier: float) -> int:
        found = norm_widths(base.replace(depth_multiplier=multiplier).layer_plan)
        return sum(found.get(path) == width for path, width in widths.items())

    return max(_GRID, key=agreeing)


def _smallest(holds: Callable[[float], bool]) -> float:
    """The smallest multiplier at which ``holds``, which stays true from there on."""
    low, high = 0.0, MAX_WIDTH_FACTOR
    while (middle := (low + high) / 2) not in (low, high):
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
