"""torchvision's ``mobilenet_v2`` ↔ tensors by Flax path, for every ``width_mult``.

torchvision numbers its layers through: ``features.0`` is the first convolution, ``features.1`` the unexpanded block,
both of our stem; then the blocks, the last 1×1 convolution and ``classifier.1``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights import pytorch
from flax_mnv2.weights.tensors import Naming, Path, torch_naming
from flax_mnv2.weights.widths import find_depth_multiplier, nearest_depth_multiplier, norm_widths, plan_differences

# Position of (convolution, batch norm) inside a block's ``conv``.
_UNEXPANDED = {"conv_3x3": ("0.0", "0.1"), "reduce_1x1": ("1", "2")}
_EXPANDED = {"expand_1x1": ("0.0", "0.1"), "conv_3x3": ("1.0", "1.1"), "reduce_1x1": ("2", "3")}


def recognises(keys: Mapping[str, object]) -> bool:
    """Whether tensor names are torchvision's."""
    return any(key.startswith("features.") for key in keys)


def naming(num_blocks: int) -> Naming:
    """Names in a network of ``num_blocks`` blocks beside the unexpanded one."""

    def prefix_of(modules: Path) -> str:
        if modules == ("classifier",):
            return "classifier.1"
        _, block, *rest = modules
        position = ("convolution", "normalization").index(rest[-1])
        if block == "conv_1x1":
            return f"features.{num_blocks + 2}.{position}"
        if (block, rest[0]) == ("conv_stem", "first_conv"):
            return f"features.0.{position}"
        if block == "conv_stem":
            return f"features.1.conv.{_UNEXPANDED[rest[0]][position]}"
        return f"features.{int(block.removeprefix('layer_')) + 2}.conv.{_EXPANDED[rest[0]][position]}"

    return torch_naming(prefix_of)


def config_of(state: Mapping[str, np.ndarray]) -> MobileNetV2Config:
    """The config that has the widths of ``state``; where none has, the nearest, so that a diff can say why not.

    Fields that the reference does not know stay at their default where that gives the same network.
    """
    fields = pytorch.SHARED_FIELDS | {"num_labels": 2, **pytorch.WIDTH_RULE}
    base = MobileNetV2Config(**fields)
    plan = base.layer_plan
    names = naming(len(plan.blocks))
    widths = pytorch.state_widths(state, names, tuple(norm_widths(plan)))
    multiplier = find_depth_multiplier(base, widths)
    if multiplier is None:
        config = base.replace(depth_multiplier=nearest_depth_multiplier(base, widths))
    else:
        config = pytorch.with_fewest_own_fields(base.replace(depth_multiplier=multiplier), search=True)
    return config.replace(**pytorch.state_fields(state, names, default_labels=1000))


def check_target(config: MobileNetV2Config, task: str) -> None:
    """Raises a ConfigError that names the differences, if torchvision cannot build the network of ``config``."""
    base = MobileNetV2Config(num_labels=2, output_stride=config.output_stride, **pytorch.WIDTH_RULE)
    widths = norm_widths(config.layer_plan)
    multiplier = find_depth_multiplier(base, widths) or nearest_depth_multiplier(base, widths)
    needed = base.replace(depth_multiplier=multiplier).layer_plan
    pytorch.check_target(
        "torchvision",
        config,
        task,
        {
            "num_channels": (3, config.num_channels),
            "num_labels": (max(config.num_labels, 1), config.num_labels),
            **plan_differences(needed=needed, found=config.layer_plan),
        },
    )


# ``MobileNet_V2_Weights.IMAGENET1K_V1``: shorter side 256, central 224, bilinear. (V2 resizes to 232.)
PROCESSOR_TEXT = MobileNetV2ImageProcessor(
    size=256, crop_size=224, resample=2, image_mean=pytorch.IMAGENET_MEAN, image_std=pytorch.IMAGENET_STD
).to_json_string()
