"""mmdet's ``ssdlite_mobilenetv2`` ↔ tensors by Flax path.

``backbone.layer1.0`` is the unexpanded block of our stem, ``backbone.layer3.1`` the second one of the third stage. Box
codes are x, y, width, height, and the slot of no class is the last: ``DetectionSpec`` says both, so no tensor changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flax_mnv2 import layer_plan as architecture
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.detection.base import HEAD, DetectionFormat
from flax_mnv2.weights.tensors import Naming, Path, torch_naming

_KIND = {"convolution": "conv", "normalization": "bn"}
_LAYER = {"expand_1x1": "expand_conv", "conv_3x3": "depthwise_conv", "reduce_1x1": "linear_conv"}
_EXTRA = {"squeeze": "0", "conv_3x3": "1.depthwise_conv", "expand": "1.pointwise_conv"}
_PREDICTORS = {"box": "reg_convs", "class": "cls_convs"}
# PyTorch's momentum 0.03 is 0.97 in Flax's sense.
_FIELDS = pytorch.WIDTH_RULE | {"tf_padding": False, "layer_norm_eps": 1e-3, "batch_norm_momentum": 0.97}


class MmdetFormat(DetectionFormat):
    """A state dict of mmdet's SSDLite, or one of its checkpoints."""

    name = "mmdet"
    example = "bbox_head.cls_convs.0.0.conv.weight"
    library = "mmdet"
    preset = "mmdet"
    side = 320
    mean_and_std = (pytorch.IMAGENET_MEAN, pytorch.IMAGENET_STD)

    def knows(self, names: Iterable[str]) -> bool:
        """By those of the predictors; over another backbone the tensors will not fit, and each is named."""
        return any(name.startswith("bbox_head.cls_convs.") for name in names)

    def bases(self) -> Sequence[MobileNetV2Config]:
        """Returns the one whose last convolution keeps its width at small multipliers."""
        return [MobileNetV2Config(**_FIELDS)]

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names in the network of ``config``, whose stages decide where a block is."""
        counts = enumerate((count for _, count, _ in architecture.BLOCK_TABLE), start=2)
        places = [f"backbone.layer{stage}.{index}" for stage, count in counts for index in range(count)]
        place_of = dict(zip((block.name for block in config.layer_plan.blocks), places, strict=False))

        def prefix_of(modules: Path) -> str | None:
            top, *rest, kind = modules
            if top == HEAD:
                return _head_prefix(*rest, kind)
            if rest == ["conv_1x1"]:
                return f"backbone.conv2.{_KIND[kind]}"
            block, layer = rest
            if (block, layer) == ("conv_stem", "first_conv"):
                return f"backbone.conv1.{_KIND[kind]}"
            place = "backbone.layer1.0" if block == "conv_stem" else place_of.get(block)
            return place and f"{place}.{_LAYER[layer]}.{_KIND[kind]}"

        return torch_naming(prefix_of, backbone=r"backbone\.")


def _head_prefix(layer: str, kind: str) -> str:
    what, number, part = layer.split("_", 2)
    if what not in _PREDICTORS:
        return f"neck.extra_layers.{number}.{_EXTRA[part]}.{_KIND[kind]}"
    prefix = f"bbox_head.{_PREDICTORS[what]}.{number}"
    return f"{prefix}.1" if part == "predictor" else f"{prefix}.0.{_KIND[kind]}"
