"""The blocks of the backbone: the stem and the inverted residual."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import module as linen_module

from flax_mnv2.layer_plan import BlockSpec, StemSpec
from flax_mnv2.models.layers import BatchNorm, ConvNormAct, Convolution, ModuleDef
from flax_mnv2.models.ops.expansion import Expansion
from flax_mnv2.models.ops.pointwise import affine_act, moments
from flax_mnv2.models.quantization.rounding import Quantizer, quantized


class Stem(nn.Module):
    """The stride-2 convolution and the first, unexpanded block."""

    spec: StemSpec
    layer: ModuleDef  # a partial of ConvNormAct
    quantizer: Quantizer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, image channels) → (N, ⌈H/2⌉, ⌈W/2⌉, out_channels), or ⌊(H - 1)/2⌋ where nothing is padded."""
        spec = self.spec
        expand = self.layer(spec.channels, kernel_size=3, stride=2, pad=spec.pads, name="first_conv")
        depthwise = self.layer(spec.channels, kernel_size=3, depthwise=True, name="conv_3x3")
        project = self.layer(spec.out_channels, act=None, name="reduce_1x1")
        if spec.expand:
            x, expand = expand(x), self.layer(spec.channels, name="expand_1x1")
        elif spec.residual:
            x = expand(x)
            return quantized(x + project(depthwise(x)), self.quantizer, "sum")
        y = project(expand_and_convolve(x, expand, depthwise))
        return quantized(x + y, self.quantizer, "sum") if spec.residual else y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection, and the shortcut where shapes allow."""

    spec: BlockSpec
    layer: ModuleDef  # a partial of ConvNormAct
    stop_at: str | None = None  # "expansion" or "depthwise", to compute no more than that
    keep_expansion: bool = False  # return the expanded map too, which need not exist otherwise
    drop_path: Callable[..., nn.Module] | None = None  # drops the branch beside the shortcut
    quantizer: Quantizer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """(N, H, W, in_channels) → what was computed and kept of

        ``expansion`` (N, H, W, expanded_channels), ``depthwise`` (N, ⌈H/stride⌉, ⌈W/stride⌉, expanded_channels) and
        ``output`` (N, ⌈H/stride⌉, ⌈W/stride⌉, out_channels).
        """
        spec, outputs = self.spec, {}
        inside = _padded(x, spec.dilation) if spec.pads_input else x
        expand = self.layer(spec.expanded_channels, name="expand_1x1")
        if self.keep_expansion or self.stop_at == "expansion":
            outputs["expansion"] = expand(inside)
            if self.stop_at == "expansion":
                return outputs
        depthwise = self.layer(
            spec.expanded_channels,
            kernel_size=3,
            stride=spec.stride,
            dilation=spec.dilation,
            depthwise=True,
            pad=not spec.pads_input,
            name="conv_3x3",
        )
        if "expansion" in outputs:
            outputs["depthwise"] = depthwise(outputs["expansion"])
        else:
            outputs["depthwise"] = expand_and_convolve(inside, expand, depthwise)
        if self.stop_at == "depthwise":
            return outputs
        branch = self.layer(spec.out_channels, act=None, name="reduce_1x1")(outputs["depthwise"])
        if spec.residual:
            branch = x + (branch if self.drop_path is None else self.drop_path()(branch))
            branch = quantized(branch, self.quantizer, "sum")
        return {**outputs, "output": branch}


def _padded(x: jax.Array, side: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))


def expand_and_convolve(x: jax.Array, expand: ConvNormAct, depthwise: ConvNormAct) -> jax.Array:
    """Computes ``depthwise(expand(x))``, as one operation of arrays unless somebody looks at the layers.

    That operation never holds the expanded map on CPU; elsewhere it is what the layers compute. Quantised layers are
    called one by one: the range of the expanded map has to be seen.
    """
    if (
        expand.quantizer is not None
        or _is_observed(expand)
        or not (_fits(expand, x.shape[-1]) and _fits(depthwise, expand.features))
    ):
        return depthwise(expand(x))
    conv = expand.convolution
    kernel = conv.get_variable("params", "kernel")
    if conv.kernel_size == 1:
        expansion = Expansion(x.astype(conv.dtype), kernel[0, 0].astype(conv.dtype), conv.implementation)
    else:
        expansion = Expansion(conv.convolve(x, kernel), None, conv.implementation)
    y = expansion.depthwise(
        *_affine(expand, expansion.moments),
        depthwise.convolution.get_variable("params", "kernel").astype(conv.dtype),
        act=expand.act,
        **depthwise.convolution.window(*expansion.size),
    )
    return affine_act(y, *_affine(depthwise, functools.partial(moments, y)), depthwise.act)


def _affine(layer: ConvNormAct, moments: Callable) -> tuple[jax.Array | None, jax.Array]:
    """(multiplier or None, offset), each (features,): the layer is ``act(convolution * multiplier + offset)``."""
    if layer.normalization is None:
        return None, layer.convolution.get_variable("params", "bias")
    return layer.normalization.affine(moments)


def _is_observed(module: nn.Module) -> bool:
    """Says whether layers are made, captured or intercepted one by one; then each has to be called.

    Linen has no public question for the last; a test holds that this one is answered.
    """
    return (
        module.is_initializing()
        or module.is_mutable_collection("intermediates")
        or len(linen_module._global_interceptor_stack) > 0
    )


def _fits(layer: ConvNormAct, in_channels: int) -> bool:
    """Says whether the layer's parts are this library's and have their variables.

    A part of another class computes what it likes; of a missing or misshapen variable Linen gives the clearest error,
    once the layer is called.
    """
    conv, norm = layer.convolution, layer.normalization
    if type(conv) is not Convolution or type(norm) not in (BatchNorm, type(None)):
        return False
    vector = (layer.features,)
    wanted = [(conv, "params", "kernel", conv.kernel_shape(in_channels))]
    if norm is None:
        wanted += [(conv, "params", "bias", vector)]
    else:
        wanted += [(norm, "params", name, vector) for name in ("scale", "bias")]
        wanted += [(norm, "batch_stats", name, vector) for name in ("mean", "var")]
    return all(getattr(part.get_variable(kind, name), "shape", None) == shape for part, kind, name, shape in wanted)
