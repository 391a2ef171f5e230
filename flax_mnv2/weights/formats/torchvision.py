"""torchvision's ``mobilenet_v2`` ↔ tensors by Flax path, for every ``width_mult``.

torchvision numbers its layers through: ``features.0`` is the first convolution, ``features.1`` the unexpanded block,
both of our stem; then the blocks, the last 1×1 convolution and ``classifier.1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.base import Found
from flax_mnv2.weights.tensors import Naming, Path, torch_naming

# Position of (convolution, batch norm) inside a block's ``conv``.
_UNEXPANDED = {"conv_3x3": ("0.0", "0.1"), "reduce_1x1": ("1", "2")}
# The files of MobileNet_V2_Weights.IMAGENET1K_V1 and V2, and the shorter side that each resizes images to.
_RESIZE_OF_FILE = {"mobilenet_v2-b0353104": 256, "mobilenet_v2-7ebf99e0": 232}
_EXPANDED = {"expand_1x1": ("0.0", "0.1"), "conv_3x3": ("1.0", "1.1"), "reduce_1x1": ("2", "3")}


class TorchvisionFormat(pytorch.PyTorchFormat):
    """A state dict of ``torchvision.models.mobilenet_v2``, in a file or in memory."""

    name = "torchvision"
    example = "features.0.0.weight"
    to_folder = False
    built_by = "any width_mult; no other inverted_residual_setting, round_nearest or block"

    def knows(self, names: Iterable[str]) -> bool:
        """By those of the numbered layers."""
        return any(re.match(r"features\.\d+\.", name) for name in names)

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors."""
        return found.tensors is not None and self.knows(found.tensors.unwrapped(self.knows).state)

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names in a network of as many blocks as ``config`` has."""
        num_blocks = len(config.layer_plan.blocks)

        def prefix_of(modules: Path) -> str | None:
            if modules[0] != "mobilenet_v2":
                return "classifier.1" if modules == ("classifier",) else None
            _, block, *rest = modules
            position = ("convolution", "normalization").index(rest[-1])
            if block == "conv_1x1":
                return f"features.{num_blocks + 2}.{position}"
            if (block, rest[0]) == ("conv_stem", "first_conv"):
                return f"features.0.{position}"
            number, places = 1, _UNEXPANDED
            if block != "conv_stem":
                number, places = int(block.removeprefix("layer_")) + 2, _EXPANDED
            known = rest[0] in places and number < num_blocks + 2
            return f"features.{number}.conv.{places[rest[0]][position]}" if known else None

        return torch_naming(prefix_of, backbone=r"features\.")

    def config_of(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any] | None = None) -> MobileNetV2Config:
        """By the widths of ``state``; fields that only we have stay at their default where that changes nothing."""
        base = MobileNetV2Config(num_labels=2, **pytorch.SHARED_FIELDS, **pytorch.WIDTH_RULE)
        names = self.naming(base)
        widths = pytorch.state_widths(state, names, base.layer_plan)
        multiplier = pytorch.find_depth_multiplier(base, widths)
        if multiplier is None:
            config = base.replace(depth_multiplier=pytorch.nearest_depth_multiplier(base, widths))
        else:
            config = pytorch.with_fewest_own_fields(base.replace(depth_multiplier=multiplier), search=True)
        return config.replace(**pytorch.state_fields(state, names, default_labels=1000))

    def make_processor(self, found: Found) -> MobileNetV2ImageProcessor:
        """Returns that of ``MobileNet_V2_Weights.IMAGENET1K_V1``, or of V2 where a file is called as theirs are."""
        size = next((size for name, size in _RESIZE_OF_FILE.items() if found.where.name.startswith(name)), 256)
        return MobileNetV2ImageProcessor(
            size=size, crop_size=224, resample=2, image_mean=pytorch.IMAGENET_MEAN, image_std=pytorch.IMAGENET_STD
        )

    def processor_note(self, found: Found) -> str:
        """Tensors do not say which of the two releases they are, nor what somebody trained them on."""
        if found.where.name.startswith(tuple(_RESIZE_OF_FILE)):
            return ""
        return "images are resized to 256 as for IMAGENET1K_V1; IMAGENET1K_V2 takes 232 (convert: --resize 232)"

    def needs(self, state: Mapping[str, np.ndarray], config: MobileNetV2Config) -> tuple[str, dict[str, Any]]:
        """Photos, and at least one class."""
        return self.name, {"num_channels": 3, "num_labels": max(config.num_labels, 1)}
