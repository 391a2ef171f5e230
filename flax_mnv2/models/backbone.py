"""The backbone: walks the layer plan and returns named endpoints."""

from __future__ import annotations

import flax.linen as nn
import jax

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.models.layers import InvertedResidual, Layer, Stem


class Backbone(nn.Module):
    """MobileNetV2 without a head.

    Attributes:
      config: the architecture.
      layer: partial of ``ConvNormAct``, bound by the model that owns the backbone.
      include_last_conv: also compute the last 1×1 convolution, which classification needs and DeepLab does not.
    """

    config: MobileNetV2Config
    layer: Layer
    include_last_conv: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Images (N, H, W, num_channels) → endpoints in depth order, each (N, h, w, c).

        Keys: ``conv_stem``, ``layer_00`` … ``layer_15``, and ``conv_1x1`` where it is included.
        """
        plan = self.config.layer_plan
        endpoints = {"conv_stem": Stem(plan.stem, self.layer, name="conv_stem")(x)}
        x = endpoints["conv_stem"]
        for spec in plan.blocks:
            x = InvertedResidual(spec, self.layer, name=spec.name)(x)
            endpoints[spec.name] = x
        if self.include_last_conv:
            endpoints["conv_1x1"] = self.layer(plan.last_channels, name="conv_1x1")(x)
        return endpoints
