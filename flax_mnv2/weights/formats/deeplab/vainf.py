"""VainF's DeepLabV3Plus-Pytorch: ``deeplabv3plus_mobilenet`` and ``deeplabv3_mobilenet`` ↔ tensors by Flax path.

The backbone is torchvision's, cut after the block that the decoder reads. Blocks pad their input, not what the
depthwise convolution gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import PRESETS
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.deeplab.base import DeepLabFormat, deeplab_naming
from flax_mnv2.weights.formats.torchvision import TorchvisionFormat
from flax_mnv2.weights.tensors import Naming, Path

_LOW_LEVEL = 4  # torchvision's layers up to the block that the decoder reads
_BODY = {"conv_3x3": ".body.0", "reduce_1x1": ".body.1", "": ""}  # of a convolution made separable
_WITH_DECODER = {
    "conv_aspp": ("aspp.convs.0.0", "aspp.convs.0.1"),
    "conv_pool": ("aspp.convs.4.1", "aspp.convs.4.2"),
    "conv_projection": ("aspp.project.0", "aspp.project.1"),
    "conv_low_level": ("project.0", "project.1"),
    "conv_decoder_0": ("classifier.0", "classifier.1"),
    "classifier": ("classifier.3", ""),
} | {f"conv_atrous_{index}": (f"aspp.convs.{index}.0", f"aspp.convs.{index}.1") for index in (1, 2, 3)}


class VainFFormat(DeepLabFormat):
    """A state dict of VainF's, the ``model_state`` of its checkpoints."""

    name = "vainf"
    library = "VainF's DeepLabV3Plus-Pytorch"
    prefix = "backbone.low_level_features."
    example = "backbone.low_level_features.0.0.weight"

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names with a decoder, or without."""
        torchvision = TorchvisionFormat().naming(config)
        has_decoder = config.deeplab is not None and config.deeplab.low_level is not None

        def backbone_key(modules: Path) -> str | None:
            key = torchvision.key_of(("params", *modules, "kernel")).removesuffix(".weight")
            number = key.split(".")[1]
            part = "low" if number.isdigit() and int(number) < _LOW_LEVEL else "high"
            return f"backbone.{part}_level_features{key.removeprefix('features')}"

        def place_of(layer: str, part: str, kind: str) -> str | None:
            if layer not in _WITH_DECODER:
                return None
            place = _WITH_DECODER[layer][kind == "normalization"]
            if not has_decoder:  # one sequence, of which the first is all of the branches and their projection
                module, _, rest = place.partition(".")
                place = f"classifier.0.{rest}" if module == "aspp" else f"classifier.{int(rest) + 1}"
            return f"classifier.{place}{_BODY[part] if kind == 'convolution' else ''}"

        return deeplab_naming(backbone_key, place_of, backbone=r"backbone\.")

    def structure(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> MobileNetV2Config:
        """A decoder, and separable convolutions, show in the names."""
        del values
        return _network(
            has_decoder=any(name.startswith("classifier.project.") for name in state),
            separable=any(".body." in name for name in state),
        )

    def nearest(self, config: MobileNetV2Config) -> MobileNetV2Config:
        """The same kind of head, on the only backbone."""
        spec = config.deeplab
        needed = _network(
            has_decoder=spec is not None and spec.low_level is not None,
            separable=spec is not None and spec.separable_branches,
        )
        return needed.replace(output_stride=config.output_stride)


def _network(*, has_decoder: bool, separable: bool) -> MobileNetV2Config:
    head = PRESETS["vainf" if has_decoder else "vainf_v3"].replace(
        separable_branches=separable, separable_decoder=separable
    )
    fields = pytorch.SHARED_FIELDS | {"classifier_dropout_prob": 0.1, "pad_block_input": True, "image_size": 513}
    return MobileNetV2Config(output_stride=16, deeplab=head, **fields)
