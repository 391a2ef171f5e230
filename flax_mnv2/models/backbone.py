"""The backbone: walks the layer plan and returns named endpoints."""

from __future__ import annotations

import flax.linen as nn
import jax

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.models.endpoints import LAST_CONV, check_endpoint, endpoint_names
from flax_mnv2.models.layers import InvertedResidual, Layer, Stem


class Backbone(nn.Module):
    """MobileNetV2 without a head.

    Attributes:
      config: the architecture.
      layer: partial of ``ConvNormAct``, bound by the model that owns the backbone.
      include_last_conv: whether the network has the last 1×1 convolution, which classification needs and DeepLab
        does not.
      run_to: endpoint after which to stop; None runs to the end. What comes later is neither computed nor has it
        parameters (those that are given are left alone).
      keep_expansions: return the expanded maps of the blocks too, which need not exist otherwise.
      remat: compute the inside of every block again in the backward pass, rather than keep it.
    """

    config: MobileNetV2Config
    layer: Layer
    include_last_conv: bool = True
    run_to: str | None = None
    keep_expansions: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Images (N, H, W, num_channels) → endpoints in depth order, each (N, h, w, c).

        Keys: those of ``endpoints.endpoint_names`` up to ``run_to``, expansions only if they are kept.

        Raises:
          ConfigError: ``run_to`` is not an endpoint of this network.
        """
        plan = self.config.layer_plan
        names = endpoint_names(plan, include_last_conv=self.include_last_conv)
        end = names[-1] if self.run_to is None else check_endpoint(self.run_to, names, "run_to")
        stem, block = (nn.remat(Stem), nn.remat(InvertedResidual)) if self.remat else (Stem, InvertedResidual)
        x = stem(plan.stem, self.layer, name="conv_stem")(x)
        endpoints = {"conv_stem": x}
        for spec in plan.blocks:
            if end in endpoints:
                return endpoints
            stop_at = end.partition("/")[2] if end.startswith(f"{spec.name}/") else None
            outputs = block(spec, self.layer, stop_at, self.keep_expansions, name=spec.name)(x)
            endpoints |= {f"{spec.name}/{part}": outputs[part] for part in outputs if part != "output"}
            if "output" in outputs:
                x = endpoints[spec.name] = outputs["output"]
        if end == LAST_CONV:
            endpoints[LAST_CONV] = self.layer(plan.last_channels, name=LAST_CONV)(x)
        return endpoints
