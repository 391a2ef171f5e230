"""TF DeepLab's names for the head's layers (tensorflow/models, ``research/deeplab/model.py``), and what they tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flax_mnv2.config.deeplab import HUGGING_FACE, DeepLabSpec
from flax_mnv2.layer_plan import LayerPlan

# Our layer of the head → the variable scope; a separable convolution's scope has one of ``SEPARABLE`` after it.
SCOPES = {
    "conv_pool": "image_pooling",
    "conv_aspp": "aspp0",
    "conv_projection": "concat_projection",
    "conv_low_level": "decoder/feature_projection0",
    "classifier": "logits/semantic",
}
SEPARABLE = {"conv_3x3": "_depthwise", "reduce_1x1": "_pointwise"}
_INDEXED = {"conv_atrous": "aspp{}", "conv_decoder": "decoder/decoder_conv{}"}
_BRANCH = re.compile(r"aspp([1-9]\d*)(_depthwise)?/")
_DECODER_CONV = re.compile(r"decoder/decoder_conv(\d+_pointwise|0/decoder_conv0_\d+)/")
_LOW_LEVEL = ("layer_01/depthwise", "layer_04/depthwise")  # slim's of output stride 4 and 8
_FIRST_RATE = 6  # 6, 12, 18 at output stride 16


def scope_of(layer: str, part: str = "") -> str | None:
    """Returns the scope of a layer of the head, or of ``part`` of a separable one; None where TF DeepLab has none.

    Dense convolutions of a decoder are ``decoder/decoder_conv0/decoder_conv0_1`` and ``…_2``, as ``slim.repeat`` calls
    them.
    """
    name, _, number = layer.rpartition("_")
    if layer in SCOPES:
        return SCOPES[layer]
    if name not in _INDEXED or not re.fullmatch(r"\d+", number):
        return None
    if name == "conv_decoder" and not part:
        return f"decoder/decoder_conv0/decoder_conv0_{int(number) + 1}"
    return _INDEXED[name].format(number) + (SEPARABLE[part] if part else "")


def head_of(shapes: Mapping[str, tuple[int, ...]], plan: LayerPlan) -> DeepLabSpec | None:
    """Returns the head that variables of these names and shapes are, on the backbone of ``plan``; None: Hugging Face's.

    Names do not say the atrous rates; they are taken for the published ones, 6, 12 and 18 at output stride 16. The
    endpoint that a decoder joins in is that of slim's two which has the width.
    """
    branches = {int(match[1]): bool(match[2]) for match in map(_BRANCH.match, shapes) if match}
    convs = {match[1] for match in map(_DECODER_CONV.match, shapes) if match}
    projection = shapes.get(f"{SCOPES['conv_projection']}/weights", (HUGGING_FACE.channels,))
    low_level = shapes.get(f"{SCOPES['conv_low_level']}/weights")
    spec = HUGGING_FACE.replace(
        pooling="first" if any(name.startswith(f"{SCOPES['conv_pool']}/") for name in shapes) else "none",
        channels=projection[-1],
    )
    if not branches and not convs and low_level is None:
        return None if spec == HUGGING_FACE else spec
    spec = spec.replace(
        atrous_rates=[_FIRST_RATE * index for index in range(1, len(branches) + 1)],
        separable_branches=all(branches.values()),
        decoder_convs=len(convs),
        separable_decoder=all(name.endswith("_pointwise") for name in convs),
        align_corners=True,
    )
    if low_level is None:
        return spec
    widths = {f"{block.name}/depthwise": block.expanded_channels for block in plan.blocks}
    joined = next((name for name in _LOW_LEVEL if low_level[-2:-1] == (widths.get(name),)), _LOW_LEVEL[0])
    return spec.replace(low_level=joined, low_level_channels=low_level[-1])
