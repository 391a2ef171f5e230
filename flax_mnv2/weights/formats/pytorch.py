"""What torchvision and timm have in common.

Padding 1 on both sides, batch norm's epsilon 1e-5 and momentum 0.1 (0.9 in Flax's sense) are PyTorch's defaults,
dropout 0.2 is torchvision's default and timm's recipe, mean and standard deviation are those of ImageNet.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2.checkpoint.comparing import USUAL_ADVICE
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.checks import MAX_WIDTH_FACTOR
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.layer_plan import LayerPlan, make_layer_plan
from flax_mnv2.weights.formats.base import Format, Found
from flax_mnv2.weights.source import Checkpoint, Source
from flax_mnv2.weights.tensors import Naming, Path, StateDict, write_state

SHARED_FIELDS: dict[str, Any] = {
    "tf_padding": False,
    "layer_norm_eps": 1e-5,
    "batch_norm_momentum": 0.9,
    "classifier_dropout_prob": 0.2,
}
# Widths are not rounded to integers first, and every block has a shortcut where its widths agree.
WIDTH_RULE: dict[str, Any] = {"round_widths": False, "stem_residual": True}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SHOWN = 12
_LEAST_MULTIPLIER = 2.0**-20  # below which every width is the smallest there is
_GRID = (1.0, *(step / 20 for step in range(1, 41)))  # what to try where no multiplier fits: 1 first, then 0.05 to 2
# What decides the network's output and neither library keeps beside its weights.
NEEDED_FIELDS = {
    "tf_padding": False,
    "layer_norm_eps": 1e-5,
    "hidden_act": "relu6",
    "output_stride": 32,
    "pool_window": None,
    "global_pool": "avg",
}


class PyTorchFormat(Format):
    """A library of classifiers whose tensors say the whole network, in files or in memory."""

    to_file = True
    built_by: str  # what of the library's arguments changes the layers, for a message
    needed_fields: Mapping[str, Any] = NEEDED_FIELDS  # a row for each that the target must have
    targets = ("classification",)  # tasks that it can represent

    @abc.abstractmethod
    def naming(self, config: MobileNetV2Config) -> Naming:
        """Returns the library's names in the network of ``config``."""

    @abc.abstractmethod
    def config_of(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any] | None = None) -> MobileNetV2Config:
        """Returns the config of the network that ``state`` is, or of the nearest that the library has.

        ``values`` are those of the ``config.json`` beside the tensors; a ConfigError where they are the library's own,
        for a network that we do not have.
        """

    @abc.abstractmethod
    def make_processor(self, found: Found) -> MobileNetV2ImageProcessor:
        """Returns what the library does to images."""

    def processor_note(self, found: Found) -> str:
        """Returns what nobody can know of that, for the user; empty where there is nothing."""
        return ""

    @abc.abstractmethod
    def needs(self, state: Mapping[str, np.ndarray], config: MobileNetV2Config) -> tuple[str, dict[str, Any]]:
        """Returns the nearest network of the library, for a message, and fields that ``config`` must have."""

    def open(self, found: Found) -> Source:
        """Config and processor follow from the tensors and what lies beside them."""
        if found.config is not None:
            raise ConfigError(f"A {self.name} state dict says its network itself; pass no config.")
        tensors = found.read().unwrapped(self.knows)
        config = self.config_of(tensors.state, found.values)
        if config.num_channels == 3:
            processor, note = self.make_processor(found), self.processor_note(found)
        else:
            note = f"the image processor makes 3 channels, not {config.num_channels}: preprocessing stays behind"
            processor = None
        naming = self.naming(config)
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task="classification",
            state=tensors.state,
            naming=naming,
            advice=self._advice(tensors.state, naming, config.layer_plan),
            usual_processor=processor,
            processor_note=note,
            notes=tensors.notes,
        )

    def _advice(self, state: Mapping[str, np.ndarray], naming: Naming, plan: LayerPlan) -> str:
        """Returns what a network is that the library can build and this one does not have, if that can be seen."""
        expected, found = norm_widths(plan), state_widths(state, naming, plan)
        if found and not any(key.endswith(".running_mean") for key in state):
            return "It has no running statistics: its norm_layer is not batch norm, and this library has no other."
        if expected.keys() - found.keys() == {("mobilenet_v2", "conv_1x1")}:
            return (
                "It ends before the last 1×1 convolution, as feature extractors do: load_backbone puts it under a "
                "MobileNetV2Backbone."
            )
        if found != expected:
            return f"This library has {self.name}'s published networks, with {self.built_by}."
        return USUAL_ADVICE

    def check_target(self, checkpoint: Checkpoint) -> None:
        """Compares with the nearest network that the library has."""
        config = checkpoint.config
        state = write_state(checkpoint.tensors, self.naming(config))
        library, fields = self.needs(state, config)
        nearest = self.config_of(state).replace(output_stride=config.output_stride)
        rows = {"task": (checkpoint.task if checkpoint.task in self.targets else self.targets[0], checkpoint.task)}
        rows |= {name: (value, getattr(config, name)) for name, value in (self.needed_fields | fields).items()}
        rows |= plan_differences(needed=nearest.layer_plan, found=config.layer_plan)
        check_rows(library, rows, to="hf or flax")

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns the tensors, which say all."""
        return write_state(checkpoint.tensors, self.naming(checkpoint.config))

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """Returns what no file of tensors can say."""
        problem = checkpoint.config.problem_type
        notes = [] if problem is None else [f"{self.name} has no problem_type: {problem!r} stays behind"]
        if is_file:
            notes.append(f"a {self.name} file holds tensors only: class names and preprocessing stay behind")
        return notes


def check_rows(library: str, rows: Mapping[str, tuple[Any, Any]], *, to: str) -> None:
    """Raises a ConfigError that lists what differs among ``rows``, by name (needed, found), and where ``to`` go."""
    lines = [
        f"  {name}: {library} needs {needed!r}, the source has {found!r}"
        for name, (needed, found) in rows.items()
        if needed != found
    ]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"  … and {len(lines) - _SHOWN} more"]
    if lines:
        raise ConfigError(
            f"{library} cannot represent this model; with its code the same weights would give other numbers:\n"
            + "\n".join(lines)
            + f"\nConvert to {to} instead."
        )


def state_widths(state: Mapping[str, np.ndarray], naming: Naming, plan: LayerPlan) -> dict[Path, int]:
    """Returns channels of those batch norms of ``plan`` that ``state`` has, by the path of their layer."""
    widths = {}
    for module in norm_widths(plan):
        key = naming.key_of(("params", *module, "normalization", "scale"))
        if key in state and state[key].ndim == 1:
            widths[module] = state[key].shape[0]
    return widths


def state_fields(state: Mapping[str, np.ndarray], naming: Naming, *, default_labels: int) -> dict[str, int]:
    """``num_labels`` and ``num_channels`` as the last and the first layer have them, or as where there are none."""
    first = state.get(naming.key_of(("params", "mobilenet_v2", "conv_stem", "first_conv", "convolution", "kernel")))
    classifier = [state.get(naming.key_of(("params", "classifier", leaf))) for leaf in ("kernel", "bias")]
    widths = [tensor.shape[0] for tensor in classifier if tensor is not None and tensor.ndim]
    fields = {"num_labels": widths[0] if widths else default_labels}
    return fields | ({"num_channels": first.shape[1]} if first is not None and first.ndim == 4 else {})


def with_fewest_own_fields(config: MobileNetV2Config, *, search: bool) -> MobileNetV2Config:
    """Returns the same network with our own fields at their default; by another depth multiplier if ``search``."""
    defaults = {"round_widths": True, "stem_residual": False}
    for own in ({}, {"stem_residual": True}, {"round_widths": False}):
        base = config.replace(**defaults | own)
        if base.layer_plan == config.layer_plan:
            return base
        found = find_depth_multiplier(base, norm_widths(config.layer_plan)) if search else None
        if found is not None and (other := base.replace(depth_multiplier=found)).layer_plan == config.layer_plan:
            return other
    return config


# ---- networks by the widths of their layers --------------------------------------------------------------------------


def norm_widths(plan: LayerPlan) -> dict[Path, int]:
    """Returns channels of every batch norm of a backbone, by the path of its layer."""
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
    """Returns what differs between two networks, by name: (needed, found)."""
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


def find_depth_multiplier(base: MobileNetV2Config, widths: Mapping[Path, int]) -> float | None:
    """Returns the shortest decimal at which ``base`` has ``widths``; None if there is none, or no widths are known.

    Every width grows with the multiplier, so those that fit are an interval, whose ends bisection finds.
    """

    def compare(multiplier: float) -> tuple[bool, bool]:
        found = norm_widths(make_layer_plan(base, multiplier))
        pairs = [(found[path], width) for path, width in widths.items() if path in found]
        return all(ours >= theirs for ours, theirs in pairs), any(ours > theirs for ours, theirs in pairs)

    def smallest(index: int) -> float:  # at which that comparison holds, which it does from there on
        low, high = _LEAST_MULTIPLIER, MAX_WIDTH_FACTOR
        while (middle := (low + high) / 2) not in (low, high):
            if compare(middle)[index]:
                high = middle
            else:
                low = middle
        return high

    low, high = smallest(0), smallest(1)
    if not widths or low >= high:
        return None
    decimals = (round((low + high) / 2, digits) for digits in range(17))
    return next((decimal for decimal in decimals if low <= decimal < high), low)


def nearest_depth_multiplier(base: MobileNetV2Config, widths: Mapping[Path, int]) -> float:
    """Returns the multiplier at which most of ``widths`` agree, for a message about the others."""

    def agreeing(multiplier: float) -> int:
        found = norm_widths(make_layer_plan(base, multiplier))
        return sum(found.get(path) == width for path, width in widths.items())

    return max(_GRID, key=agreeing)
