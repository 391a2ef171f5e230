"""The backbone: walks the layer plan and returns named endpoints."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.models.blocks import InvertedResidual, Stem
from flax_mnv2.models.endpoints import LAST_CONV, check_endpoint, endpoint_names
from flax_mnv2.models.layers import ConvNormAct, DropPath, ModuleDef
from flax_mnv2.models.ops.activations import activation
from flax_mnv2.models.quantization.rounding import Quantizer, quantized_input


class Backbone(nn.Module):
    """MobileNetV2 without a head; ``MobileNetV2Base`` says what the attributes that are not explained here mean.

    What comes after ``run_to`` is neither computed nor has it parameters (those that are given are left alone).
    """

    config: MobileNetV2Config
    conv: ModuleDef
    norm: ModuleDef | None
    quantizer: Quantizer | None = None
    include_last_conv: bool = True  # the last 1×1 convolution, which classification needs and DeepLab does not
    run_to: str | None = None  # endpoint after which to stop
    keep_expansions: tuple[str, ...] = ()  # blocks whose expanded map is returned too; it need not exist otherwise
    remat: bool = False
    drop_path_rate: float = 0.0
    freeze_until: str = ""
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Images (N, H, W, num_channels) → endpoints in depth order, each (N, h, w, c).

        Keys: those of ``endpoints.endpoint_names`` up to ``run_to``, expansions only if they are kept.
        """
        plan = self.config.layer_plan
        names = endpoint_names(plan, include_last_conv=self.include_last_conv)
        end = names[-1] if self.run_to is None else check_endpoint(self.run_to, names, "run_to")
        stem, block = (nn.remat(Stem), nn.remat(InvertedResidual)) if self.remat else (Stem, InvertedResidual)
        frozen = self._frozen([name for name in names if "/" not in name])
        x = stem(plan.stem, self._layer_of("conv_stem", frozen), self.quantizer, name="conv_stem")(
            quantized_input(x, self.quantizer)
        )
        x = self._maybe_stopped(x, "conv_stem")
        endpoints = {"conv_stem": x}
        for at, spec in enumerate(plan.blocks):
            if end in endpoints:
                return endpoints
            stop_at = end.partition("/")[2] if end.startswith(f"{spec.name}/") else None
            layer, drop_path = self._layer_of(spec.name, frozen), None
            if self.drop_path_rate and spec.residual and spec.name not in frozen:
                rate = self.drop_path_rate * (at + 1) / (len(plan.blocks) + 1)  # the stem has a block too
                drop_path = functools.partial(DropPath, rate, self.axis_name)
            keeps_expansion = spec.name in self.keep_expansions
            outputs = block(spec, layer, stop_at, keeps_expansion, drop_path, self.quantizer, name=spec.name)(x)
            endpoints |= {f"{spec.name}/{part}": outputs[part] for part in outputs if part != "output"}
            if "output" in outputs:
                x = endpoints[spec.name] = self._maybe_stopped(outputs["output"], spec.name)
        if end == LAST_CONV:
            layer = self._layer_of(LAST_CONV, frozen)
            endpoints[LAST_CONV] = self._maybe_stopped(layer(plan.last_channels, name=LAST_CONV)(x), LAST_CONV)
        return endpoints

    def _frozen(self, layers: list[str]) -> frozenset[str]:
        """Names of the layers up to ``freeze_until``."""
        if not self.freeze_until:
            return frozenset()
        if self.freeze_until not in layers:
            raise ConfigError(f"freeze_until must be one of {', '.join(layers)}; found {self.freeze_until!r}.")
        return frozenset(layers[: layers.index(self.freeze_until) + 1])

    def _layer_of(self, name: str, frozen: frozenset[str]) -> ModuleDef:
        norm = self.norm
        if norm is not None and name in frozen:
            norm = functools.partial(norm, use_running_average=True)
        act = activation(self.config.hidden_act)
        return functools.partial(ConvNormAct, conv=self.conv, norm=norm, act=act, quantizer=self.quantizer)

    def _maybe_stopped(self, x: jax.Array, name: str) -> jax.Array:
        return jax.lax.stop_gradient(x) if name == self.freeze_until else x
