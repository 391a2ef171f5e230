"""segmentation_models_pytorch: DeepLabV3 and DeepLabV3Plus with the encoder ``mobilenet_v2`` ↔ tensors by Flax path.

The encoder is torchvision's, its last 1×1 convolution included, on which the head stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import PRESETS
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import shown
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.base import Found
from flax_mnv2.weights.formats.deeplab.base import DeepLabFormat, deeplab_naming
from flax_mnv2.weights.formats.torchvision import TorchvisionFormat
from flax_mnv2.weights.tensor_files import find_weights
from flax_mnv2.weights.tensors import Naming, Path

_CLASSES = ("DeepLabV3", "DeepLabV3Plus")
_PART = {"conv_3x3": ".0", "reduce_1x1": ".1", "": ""}
_ASPP = {
    "conv_aspp": ("convs.0.0", "convs.0.1"),
    "conv_pool": ("convs.4.1", "convs.4.2"),
    "conv_projection": ("project.0", "project.1"),
} | {f"conv_atrous_{index}": (f"convs.{index}.0", f"convs.{index}.1") for index in (1, 2, 3)}
_WITH_DECODER = {
    "conv_refine_0": ("decoder.aspp.1", "decoder.aspp.2"),
    "conv_low_level": ("decoder.block1.0", "decoder.block1.1"),
    "conv_decoder_0": ("decoder.block2.0", "decoder.block2.1"),
    "classifier": ("segmentation_head.0", ""),
} | {layer: tuple(f"decoder.aspp.0.{place}" for place in places) for layer, places in _ASPP.items()}
_WITHOUT = {
    "conv_decoder_0": ("decoder.conv", "decoder.bn"),
    "classifier": ("segmentation_head.0", ""),
} | {layer: tuple(f"decoder.aspp.{place}" for place in places) for layer, places in _ASPP.items()}


class SmpFormat(DeepLabFormat):
    """A state dict of the library's, or a folder of its ``save_pretrained``."""

    name = "smp"
    library = "segmentation_models_pytorch"
    prefix = "decoder.aspp."
    example = "decoder.aspp.0.project.0.weight, decoder.aspp.project.0.weight"

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors; a folder by its config."""
        if found.tensors is None:
            return is_config(found.values) and find_weights(found.where) is not None
        return super().recognises(found)

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names with a decoder, or without."""
        torchvision = TorchvisionFormat().naming(config)
        has_decoder = config.deeplab is not None and config.deeplab.low_level is not None
        places = _WITH_DECODER if has_decoder else _WITHOUT

        def backbone_key(modules: Path) -> str | None:
            return "encoder." + torchvision.key_of(("params", *modules, "kernel")).removesuffix(".weight")

        def place_of(layer: str, part: str, kind: str) -> str | None:
            if layer not in places:
                return None
            return places[layer][kind == "normalization"] + (_PART[part] if kind == "convolution" else "")

        return deeplab_naming(backbone_key, place_of, backbone=r"encoder\.")

    def structure(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> MobileNetV2Config:
        """Decoder and kind of branches show in the names, stride and rates in a folder's config."""
        has_decoder = any(name.startswith("decoder.aspp.0.") for name in state)
        branch = "decoder.aspp.0.convs.1.0.0.weight" if has_decoder else "decoder.aspp.convs.1.0.0.weight"
        config = _network(has_decoder=has_decoder, separable=branch in state)
        return _as_told(config, values) if self.is_told(values) else config

    def is_told(self, values: Mapping[str, Any]) -> bool:
        """A folder's config says them."""
        return is_config(values)

    def nearest(self, config: MobileNetV2Config) -> MobileNetV2Config:
        """The same kind of head with the same widths and rates, on the only encoder."""
        spec = config.deeplab
        needed = _network(
            has_decoder=spec is not None and spec.low_level is not None,
            separable=spec is not None and spec.separable_branches,
        )
        if spec is not None and len(spec.atrous_rates) == len(needed.deeplab.atrous_rates):
            rates = spec.rates_at(config.layer_plan.blocks[-1].output_stride)
            needed = needed.replace(deeplab=needed.deeplab.replace(atrous_rates=rates, channels=spec.channels))
        return needed.replace(output_stride=config.output_stride)


def is_config(values: Mapping[str, Any]) -> bool:
    """Returns whether the contents of a ``config.json`` are those of a DeepLab of the library's."""
    name = values.get("_model_class")
    return isinstance(name, str) and name in _CLASSES and "encoder_name" in values


def _as_told(config: MobileNetV2Config, values: Mapping[str, Any]) -> MobileNetV2Config:
    needed = {"encoder_name": "mobilenet_v2", "encoder_depth": 5}
    for name, value in needed.items():
        if values.get(name, value) != value:
            raise ConfigError(
                f"The config.json builds a segmentation_models_pytorch model with {name}={shown(values[name])}; this "
                f"library reads those with {value!r}."
            )
    rates = values.get("decoder_atrous_rates", config.deeplab.atrous_rates)
    spec = config.deeplab.replace(atrous_rates=rates)
    return config.replace(
        deeplab=spec,
        output_stride=values.get("encoder_output_stride", config.output_stride),
        classifier_dropout_prob=values.get("decoder_aspp_dropout", config.classifier_dropout_prob),
    )


def _network(*, has_decoder: bool, separable: bool) -> MobileNetV2Config:
    head = PRESETS["smp" if has_decoder else "smp_v3"].replace(separable_branches=separable)
    fields = pytorch.SHARED_FIELDS | {"classifier_dropout_prob": 0.5, "dilation_rule": "smp", "image_size": 512}
    return MobileNetV2Config(output_stride=16 if has_decoder else 8, deeplab=head, **fields)
