"""SSDLite: more maps of half the size each, and on every map depthwise-separable predictors of classes and boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.models.layers import ConvNormAct, ModuleDef
from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops.activations import activation
from flax_mnv2.models.quantization.rounding import Quantizer, quantized

INITIAL_DEVIATION = 0.03  # of all kernels, a truncated normal: the TF Object Detection API's
_MIN_CHANNELS = 16  # of an extra map, at a small α


class SSDLiteHead(nn.Module):
    """The extra maps and the predictors (arXiv 1801.04381, section 6.2; arXiv 1512.02325)."""

    config: MobileNetV2Config
    spec: DetectionSpec
    conv: ModuleDef
    norm: ModuleDef | None
    quantizer: Quantizer | None = None

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Maps of the backbone (N, h, w, c) → class logits (N, A, slots) and box codes (N, A, 4), float32.

        The anchors are in the order of ``detection.anchors.make_anchors``.
        """
        spec, norm = self.spec, self.norm
        if norm is not None and self.config.head_batch_norm_momentum is not None:
            norm = functools.partial(norm, momentum=self.config.head_batch_norm_momentum)
        conv = functools.partial(self.conv, kernel_init=nn.initializers.truncated_normal(INITIAL_DEVIATION))
        act = activation(self.config.hidden_act)
        layer = functools.partial(ConvNormAct, conv=conv, norm=norm, act=act, quantizer=self.quantizer)
        maps = list(maps)
        for index, channels in enumerate(spec.extra_channels):
            x = layer(extra_width(self.config, channels // 2), name=f"extra_{index}_squeeze")(maps[-1])
            x = layer(x.shape[-1], kernel_size=3, stride=2, depthwise=True, name=f"extra_{index}_conv_3x3")(x)
            maps.append(layer(extra_width(self.config, channels), name=f"extra_{index}_expand")(x))
        num_slots, rows = spec.num_slots(self.config.num_labels), {"class": [], "box": []}
        convs = {"class": functools.partial(conv, bias_init=nn.initializers.constant(spec.class_bias)), "box": conv}
        for index, (x, kinds) in enumerate(zip(maps, spec.anchors, strict=True)):
            for what, depth in (("class", num_slots), ("box", 4)):
                y = layer(x.shape[-1], kernel_size=3, depthwise=True, name=f"{what}_{index}_conv_3x3")(x)
                plain = functools.partial(layer, conv=convs[what], norm=None, act=None, quantize_output=False)
                y = plain(len(kinds) * depth, name=f"{what}_{index}_predictor")(y)
                rows[what].append(y.reshape(len(y), -1, depth))
        logits, codes = (jnp.concatenate(rows[what], axis=1) for what in ("class", "box"))
        logits, codes = (values.astype(at_least_float32(values.dtype)) for values in (logits, codes))
        return quantized(logits, self.quantizer, "class_logits"), quantized(codes, self.quantizer, "box_codes")


def extra_width(config: MobileNetV2Config, channels: int) -> int:
    """Returns the width of a convolution of the extra maps that has ``channels`` at α 1."""
    return max(int(channels * config.depth_multiplier), _MIN_CHANNELS)
