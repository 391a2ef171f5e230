"""timm's seven ``mobilenetv2_*`` ↔ tensors by Flax path; files of tensors, and its hub folders.

timm counts blocks by stage: ``blocks.0.0`` is the unexpanded block of our stem, ``blocks.2.1`` the second one of the
third stage. In an expanded block ``conv_pw`` expands and ``conv_pwl`` projects; in ``blocks.0.0`` ``conv_pw`` projects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2 import layer_plan as architecture
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import parse_json
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import pytorch, timm_config
from flax_mnv2.weights.formats.base import Content, Found
from flax_mnv2.weights.source import Checkpoint
from flax_mnv2.weights.tensors import Naming, Path, torch_naming

# Width, depth of the stages between the first and the last, and whether stem and head keep their width.
VARIANTS: dict[str, dict[str, Any]] = {
    "mobilenetv2_035": {"depth_multiplier": 0.35},
    "mobilenetv2_050": {"depth_multiplier": 0.5},
    "mobilenetv2_075": {"depth_multiplier": 0.75},
    "mobilenetv2_100": {"depth_multiplier": 1.0},
    "mobilenetv2_110d": {"depth_multiplier": 1.1, "layer_depth_multiplier": 1.2, "fixed_stem_and_head": True},
    "mobilenetv2_120d": {"depth_multiplier": 1.2, "layer_depth_multiplier": 1.4, "fixed_stem_and_head": True},
    "mobilenetv2_140": {"depth_multiplier": 1.4},
}
_TOP = {
    ("mobilenet_v2", "conv_stem", "first_conv", "convolution"): "conv_stem",
    ("mobilenet_v2", "conv_stem", "first_conv", "normalization"): "bn1",
    ("mobilenet_v2", "conv_1x1", "convolution"): "conv_head",
    ("mobilenet_v2", "conv_1x1", "normalization"): "bn2",
    ("classifier",): "classifier",
}
_UNEXPANDED = {"conv_3x3": ("conv_dw", "bn1"), "reduce_1x1": ("conv_pw", "bn2")}
_EXPANDED = {"expand_1x1": ("conv_pw", "bn1"), "conv_3x3": ("conv_dw", "bn2"), "reduce_1x1": ("conv_pwl", "bn3")}


def naming(config: MobileNetV2Config) -> Naming:
    """Names in the network of ``config``, whose depth decides where a stage begins."""
    stages = _stage_of_block(config)

    def prefix_of(modules: Path) -> str | None:
        if modules in _TOP or modules[0] != "mobilenet_v2":
            return _TOP.get(modules)
        _, block, layer, kind = modules
        place, layers = ("0.0", _UNEXPANDED) if block == "conv_stem" else (stages.get(block), _EXPANDED)
        if place is None or layer not in layers:
            return None
        return f"blocks.{place}.{layers[layer][('convolution', 'normalization').index(kind)]}"

    return torch_naming(prefix_of, backbone=r"(conv_stem|bn1|blocks|conv_head|bn2)\.")


class TimmFormat(pytorch.PyTorchFormat):
    """A folder of timm's hub, or a state dict of one of its modules, in a file or in memory."""

    name = "timm"
    example = "conv_stem.weight, blocks.0.0.conv_dw.weight"
    naming = staticmethod(naming)

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors; a folder by its config."""
        if found.tensors is None:
            return timm_config.recognises(found.values)
        return any(key.startswith("blocks.") or key == "conv_stem.weight" for key in found.tensors.state)

    def config_of(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any] | None = None) -> MobileNetV2Config:
        """That of the variant that ``values`` name, or else of the one that ``state`` is like."""
        is_told = timm_config.recognises(values)
        config = _variant_config(timm_config.variant_of(values, VARIANTS) if is_told else _nearest_variant(state))
        fields = pytorch.state_fields(state, naming(config), default_labels=0)  # num_classes=0: no classifier
        return config.replace(**(timm_config.fields_of(values, fields) if is_told else fields))

    def make_processor(self, values: Mapping[str, Any] | None = None) -> MobileNetV2ImageProcessor:
        """What timm's evaluation transform does."""
        return timm_config.make_processor(values if timm_config.recognises(values) else {})

    def needs(self, state: Mapping[str, np.ndarray], config: MobileNetV2Config) -> tuple[str, dict[str, Any]]:
        """One of the variants."""
        return f"timm's {_nearest_variant(state)}", {}

    def content(self, checkpoint: Checkpoint) -> Content:
        """The tensors, and what timm's hub folder says beside them."""
        content, processor = super().content(checkpoint), _processor_of(checkpoint)
        text = timm_config.folder_text(checkpoint.config, _nearest_variant(content.state), processor)
        return dataclasses.replace(content, config_text=text)

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """What timm's evaluation transform cannot do, beside what no file can say."""
        notes, processor = super().left_behind(checkpoint, is_file=is_file), _processor_of(checkpoint)
        if is_file or (processor is None and timm_config.kept_config(checkpoint.config)):
            return notes
        if processor is None:
            return [*notes, f"no {PROCESSOR_NAME}: timm's usual preprocessing is written"]
        return notes + [
            f"timm cannot prepare images with {name}={getattr(processor, name)!r}: it resizes the shorter side, crops "
            "a square, scales by 1/255 and normalises"
            for name in timm_config.unsaid_settings(processor)
        ]


def _processor_of(checkpoint: Checkpoint) -> MobileNetV2ImageProcessor | None:
    if checkpoint.processor_text is None:
        return None
    try:
        return MobileNetV2ImageProcessor.from_dict(parse_json(checkpoint.processor_text))
    except ValueError as error:
        raise ConfigError(f"The source's {PROCESSOR_NAME}: {error}") from None


def _variant_config(variant: str) -> MobileNetV2Config:
    fields = pytorch.SHARED_FIELDS | pytorch.WIDTH_RULE | VARIANTS[variant]
    return pytorch.with_fewest_own_fields(MobileNetV2Config(num_labels=2, **fields), search=False)


def _nearest_variant(state: Mapping[str, np.ndarray]) -> str:
    """The variant that has the most widths of ``state``, and the fewest others."""

    def agreement(variant: str) -> int:
        config = _variant_config(variant)
        names, plan = naming(config), pytorch.norm_widths(config.layer_plan)
        widths = pytorch.state_widths(state, names, tuple(plan))
        expected = {names.key_of(("params", *module, "normalization", "scale")) for module in plan}
        unexpected = sum(key.startswith("blocks.") and ".bn" in key and key.endswith(".weight") for key in state)
        unexpected -= sum(key in state and key.startswith("blocks.") for key in expected)
        return sum(widths.get(module) == width for module, width in plan.items()) - unexpected

    return max(VARIANTS, key=agreement)


def _stage_of_block(config: MobileNetV2Config) -> dict[str, str]:
    *middle, last = [repeats for _, repeats, _ in architecture.BLOCK_TABLE]
    repeats = [*(math.ceil(count * config.layer_depth_multiplier) for count in middle), last]
    places = [f"{stage}.{index}" for stage, count in enumerate(repeats, start=1) for index in range(count)]
    return {block.name: place for block, place in zip(config.layer_plan.blocks, places, strict=True)}
