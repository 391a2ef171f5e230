"""mmseg: DeepLabV3 and V3+ with MobileNetV2 (``…m-v2-d8…``) ↔ tensors by Flax path, for every ``widen_factor``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2 import layer_plan as architecture
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.checks import OUTPUT_STRIDES
from flax_mnv2.config.deeplab import PRESETS, DeepLabSpec
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.deeplab.base import DeepLabFormat, deeplab_naming
from flax_mnv2.weights.tensor_files import TensorFile
from flax_mnv2.weights.tensors import Naming, Path

_LEAF = {"convolution": "conv", "normalization": "bn"}
_PART = {"conv_3x3": "depthwise_conv.", "reduce_1x1": "pointwise_conv.", "": ""}
_AUXILIARY = "auxiliary_head."  # a second head that training alone uses
_UNEXPANDED = {"conv_3x3": 0, "reduce_1x1": 1}
_EXPANDED = {"expand_1x1": 0, "conv_3x3": 1, "reduce_1x1": 2}
_LAYERS = {"conv_pool": "image_pool.1", "conv_projection": "bottleneck", "conv_low_level": "c1_bottleneck"}


class MmsegFormat(DeepLabFormat):
    """A state dict of mmseg's, or one of its checkpoints."""

    name = "mmseg"
    library = "mmseg"
    prefix = "decode_head.aspp_modules."
    example = "decode_head.aspp_modules.0.conv.weight"
    output_strides = OUTPUT_STRIDES

    def taken(self, tensors: TensorFile) -> TensorFile:
        """Leaves out the auxiliary head."""
        state = {key: value for key, value in tensors.state.items() if not key.startswith(_AUXILIARY)}
        if len(state) == len(tensors.state):
            return tensors
        return TensorFile(state, (*tensors.notes, "left out the auxiliary head, which only mmseg's training uses"))

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names in the network of ``config``."""
        places = _layer_of_block(config)

        def backbone_key(modules: Path) -> str | None:
            if len(modules) != 4:
                return None  # the last convolution, which mmseg does not have
            _, block, layer, kind = modules
            if (block, layer) == ("conv_stem", "first_conv"):
                return f"backbone.conv1.{_LEAF[kind]}"
            place, layers = ("layer1.0", _UNEXPANDED) if block == "conv_stem" else (places.get(block), _EXPANDED)
            if place is None or layer not in layers:
                return None
            return f"backbone.{place}.conv.{layers[layer]}.{_LEAF[kind]}"

        def place_of(layer: str, part: str, kind: str) -> str | None:
            if layer == "classifier":
                return "decode_head.conv_seg"
            name, _, number = layer.rpartition("_")
            indexed = {"conv_atrous": "aspp_modules", "conv_decoder": "sep_bottleneck"}
            if layer == "conv_aspp":
                module = "aspp_modules.0"
            elif name in indexed:
                module = f"{indexed[name]}.{number}"
            else:
                module = _LAYERS.get(layer, layer)
            return f"decode_head.{module}.{_PART[part]}{_LEAF[kind]}"

        return deeplab_naming(backbone_key, place_of, backbone=r"backbone\.")

    def structure(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> MobileNetV2Config:
        """A decoder and the kind of branches show in the names, the multiplier in the widths."""
        del values
        spec = _head(
            has_decoder=any(name.startswith("decode_head.sep_bottleneck.") for name in state),
            separable=any(re.match(r"decode_head\.aspp_modules\.\d+\.depthwise_conv\.", name) for name in state),
        )
        base = _network(spec)
        widths = pytorch.state_widths(state, self.naming(base), base.layer_plan)
        multiplier = pytorch.find_depth_multiplier(base, widths)
        if multiplier is None:
            return base.replace(depth_multiplier=pytorch.nearest_depth_multiplier(base, widths))
        return pytorch.with_fewest_own_fields(base.replace(depth_multiplier=multiplier), search=True)

    def nearest(self, config: MobileNetV2Config) -> MobileNetV2Config:
        """The same kind of head, with the same widths and rates, at the same multiplier."""
        spec = config.deeplab or PRESETS["hugging_face"]
        head = _head(has_decoder=spec.low_level is not None, separable=spec.separable_branches)
        rates = spec.rates_at(config.layer_plan.blocks[-1].output_stride)
        head = head.replace(atrous_rates=rates, channels=spec.channels, low_level_channels=spec.low_level_channels)
        return _network(head).replace(depth_multiplier=config.depth_multiplier, output_stride=config.output_stride)


def _layer_of_block(config: MobileNetV2Config) -> dict[str, str]:
    repeats = [count for _, count, _ in architecture.BLOCK_TABLE]
    places = [f"layer{stage}.{index}" for stage, count in enumerate(repeats, start=2) for index in range(count)]
    return dict(zip((block.name for block in config.layer_plan.blocks), places, strict=False))


def _head(*, has_decoder: bool, separable: bool) -> DeepLabSpec:
    return PRESETS["mmseg" if has_decoder else "mmseg_v3"].replace(separable_branches=separable)


def _network(head: DeepLabSpec) -> MobileNetV2Config:
    fields = pytorch.SHARED_FIELDS | pytorch.WIDTH_RULE
    fields |= {"classifier_dropout_prob": 0.1, "dilation_rule": "mmseg", "image_size": 512}
    return MobileNetV2Config(output_stride=8, deeplab=head, **fields)
