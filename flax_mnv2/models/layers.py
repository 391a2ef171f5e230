"""Building blocks: padding rules, convolutions, convolution + normalisation + activation, dropout, pooling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.layer_plan import BlockSpec, StemSpec
from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops.depthwise import depthwise_conv
from flax_mnv2.models.ops.expansion import Expansion
from flax_mnv2.models.ops.platforms import Implementation
from flax_mnv2.models.ops.pointwise import Activation, Moments, affine_act, moments, pointwise
from flax_mnv2.models.ops.shifts import Padding

Dtype = Any

# One entry for each of flax_mnv2.config.ACTIVATIONS.
ACTIVATION_FUNCTIONS: dict[str, Activation] = {
    "relu6": lambda x: lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype)),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "hardswish": nn.hard_swish,
    "elu": nn.elu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "linear": lambda x: x,
}


def same_padding(height: int, width: int, *, kernel: int, stride: int, dilation: int, tf_padding: bool) -> Padding:
    """Returns ((top, bottom), (left, right)) so that the output has ceil(size / stride) rows and columns.

    TensorFlow's rule depends on the input size and puts the odd zero last; PyTorch's models pad both sides
    alike. They differ at stride 2 and even sizes. The window of the TensorFlow rule is measured undilated and
    scaled afterwards, as in Hugging Face's; it matters at stride 1 only, where both give the same.
    """
    if not tf_padding:
        side = (kernel - 1) // 2 * dilation
        return (side, side), (side, side)

    def pad(size: int) -> tuple[int, int]:
        total = max(kernel - (size % stride or stride), 0)
        return total // 2 * dilation, (total - total // 2) * dilation

    return pad(height), pad(width)


class Convolution(nn.Module):
    """A convolution with Hugging Face's padding.

    Parameters, float32: ``kernel`` (k, k, in, features), or (k, k, 1, features) if depthwise; ``bias`` (features,) if
    asked for. The computation is of type ``dtype``, in the form that ``platforms.platform_op`` describes.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    use_bias: bool = False
    tf_padding: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
    implementation: Implementation = "auto"

    @nn.compact
    def parameters(self, in_channels: int) -> tuple[jax.Array, jax.Array | None]:
        """(kernel, bias or None), float32."""
        size = self.kernel_size
        shape = (size, size, 1 if self.depthwise else in_channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        return kernel, bias

    def window(self, height: int, width: int) -> dict[str, Any]:
        """Returns stride, padding and dilation for an input of this size, as keyword arguments."""
        padding = same_padding(
            height,
            width,
            kernel=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            tf_padding=self.tf_padding,
        )
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation}

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """(N, H, W, in) → (N, ceil(H / stride), ceil(W / stride), features), with this kernel, of type ``dtype``."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        window = self.window(*x.shape[1:3])
        if self.depthwise:
            return depthwise_conv(x, kernel, implementation=self.implementation, **window)
        if self.kernel_size == 1 and self.stride == 1:
            return pointwise(x, kernel[0, 0], implementation=self.implementation)
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=window["padding"],
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and activation, named as in Hugging Face's checkpoints.

    ``conv`` and ``norm`` are partials of ``Convolution`` and ``BatchNorm`` with what the whole network shares; without
    ``norm`` there is a bias in its place.
    """

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None
    act: Activation | None
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False

    @nn.compact
    def parts(self) -> tuple[nn.Module, nn.Module | None]:
        """Returns the convolution and the normalisation, or None for it."""
        conv = self.conv(
            features=self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            depthwise=self.depthwise,
            use_bias=self.norm is None,
            name="convolution",
        )
        return conv, None if self.norm is None else self.norm(features=self.features, name="normalization")

    def kernel(self, in_channels: int) -> jax.Array:
        """Returns the kernel, of the type of the computation."""
        conv, _ = self.parts()
        return conv.parameters(in_channels)[0].astype(conv.dtype)

    def affine(self, in_channels: int, moments: Callable[[jax.Array], Moments]) -> tuple[jax.Array | None, jax.Array]:
        """(multiplier or None, offset), each (features,): the layer is ``act(convolution * multiplier + offset)``."""
        conv, norm = self.parts()
        return (None, conv.parameters(in_channels)[1]) if norm is None else norm(moments)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, in) → (N, H', W', features)."""
        y = self.parts()[0](x, self.kernel(x.shape[-1]))
        return affine_act(y, *self.affine(x.shape[-1], functools.partial(moments, y)), self.act)


def depthwise_and_project(
    expansion: Expansion,
    affine: tuple[jax.Array | None, jax.Array],
    act: Activation | None,
    depthwise: ConvNormAct,
    project: ConvNormAct | None,
    size: tuple[int, int],
) -> dict[str, jax.Array]:
    """Returns ``depthwise`` and, with ``project``, ``output`` of a block, from the expanded map."""
    conv, _ = depthwise.parts()
    channels = depthwise.features
    y = expansion.depthwise(*affine, depthwise.kernel(channels), act=act, **conv.window(*size))
    y = affine_act(y, *depthwise.affine(channels, functools.partial(moments, y)), depthwise.act)
    return {"depthwise": y} if project is None else {"depthwise": y, "output": project(y)}


def expand_and_project(
    x: jax.Array,
    expand: ConvNormAct,
    depthwise: ConvNormAct,
    project: ConvNormAct | None,
    *,
    keep_expansion: bool = False,
) -> dict[str, jax.Array]:
    """Computes a block: ``expansion`` if it is to be kept, ``depthwise`` and, with ``project``, ``output``."""
    conv, _ = expand.parts()
    expansion = Expansion(x.astype(conv.dtype), expand.kernel(x.shape[-1])[0, 0], conv.implementation)
    affine = expand.affine(x.shape[-1], expansion.moments)
    outputs = depthwise_and_project(expansion, affine, expand.act, depthwise, project, x.shape[1:3])
    return {"expansion": expansion.activated(*affine, expand.act), **outputs} if keep_expansion else outputs


Layer = Callable[..., nn.Module]  # partial of ConvNormAct, bound once at the root of a model


class Stem(nn.Module):
    """The stride-2 convolution and the first, unexpanded block."""

    spec: StemSpec
    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, image channels) → (N, ⌈H/2⌉, ⌈W/2⌉, out_channels)."""
        width = self.spec.channels
        first = self.layer(width, kernel_size=3, stride=2, name="first_conv")
        depthwise = self.layer(width, kernel_size=3, depthwise=True, name="conv_3x3")
        project = self.layer(self.spec.out_channels, act=None, name="reduce_1x1")
        if self.spec.expand:
            x = first(x)
            y = expand_and_project(x, self.layer(width, name="expand_1x1"), depthwise, project)["output"]
        else:
            conv, _ = first.parts()
            y = conv(x, first.kernel(x.shape[-1]))
            expansion = Expansion(y, None, conv.implementation)
            affine = first.affine(x.shape[-1], expansion.moments)
            if self.spec.residual:
                x = expansion.activated(*affine, first.act)
            y = depthwise_and_project(expansion, affine, first.act, depthwise, project, y.shape[1:3])["output"]
        return x + y if self.spec.residual else y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection, and the shortcut where shapes allow."""

    spec: BlockSpec
    layer: Layer
    stop_at: str | None = None  # "expansion" or "depthwise", to compute no more than that
    keep_expansion: bool = False  # return the expanded map too, which need not exist otherwise
    drop_path: Callable[..., nn.Module] | None = None  # drops the branch beside the shortcut

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """(N, H, W, in_channels) → what was computed and kept of

        ``expansion`` (N, H, W, expanded_channels), ``depthwise`` (N, ⌈H/stride⌉, ⌈W/stride⌉, expanded_channels) and
        ``output`` (N, ⌈H/stride⌉, ⌈W/stride⌉, out_channels).
        """
        spec = self.spec
        expand = self.layer(spec.expanded_channels, name="expand_1x1")
        if self.stop_at == "expansion":
            return {"expansion": expand(x)}
        depthwise = self.layer(
            spec.expanded_channels,
            kernel_size=3,
            stride=spec.stride,
            dilation=spec.dilation,
            depthwise=True,
            name="conv_3x3",
        )
        project = None if self.stop_at == "depthwise" else self.layer(spec.out_channels, act=None, name="reduce_1x1")
        outputs = expand_and_project(x, expand, depthwise, project, keep_expansion=self.keep_expansion)
        if spec.residual and "output" in outputs:
            branch = outputs["output"]
            outputs["output"] = x + (branch if self.drop_path is None else self.drop_path()(branch))
        return outputs


class ChannelDropout(nn.Module):
    """Drops whole channels of each example, like PyTorch's ``Dropout2d``, which Hugging Face's head uses."""

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """(N, …, C) → the same shape; survivors are scaled by 1 / (1 - rate)."""
        if deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:
            return jnp.zeros_like(x)
        keep = draw_kept(self.make_rng("dropout"), self.rate, (x.shape[0], x.shape[-1]), self.axis_name)
        keep = keep.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


class DropPath(nn.Module):
    """Drops the residual branch of whole examples: stochastic depth (arXiv 1603.09382)."""

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, …) → the same shape; survivors are scaled by 1 / (1 - rate)."""
        keep = draw_kept(self.make_rng("dropout"), self.rate, (x.shape[0],), self.axis_name)
        keep = keep.reshape(x.shape[0], *(1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


def draw_kept(key: jax.Array, rate: float, shape: tuple[int, ...], axis_name: str | None) -> jax.Array:
    """Bools of ``shape`` (N, …), False with probability ``rate``.

    Each example draws from its own key, folded from its position in the global batch: one device or many, ``jit`` or
    ``pmap``, drop the same.
    """
    position = jnp.arange(shape[0])
    if axis_name is not None:
        position += lax.axis_index(axis_name) * shape[0]
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(position)
    return jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape[1:]))(keys)


def average_pool(x: jax.Array, window: int | None) -> jax.Array:
    """Means of (N, h, w, c) over the map, (N, c), or over every place of a window in it, of the dtype of ``x``.

    A window is square, moves by one pixel and stays inside the map, shrunk to the map's sides where it is larger (as
    TF-slim does): (N, h - window + 1, w - window + 1, c).
    """
    total = x.astype(at_least_float32(x.dtype))
    if window is None:
        return jnp.mean(total, axis=(1, 2)).astype(x.dtype)
    sides = tuple(min(window, side) for side in x.shape[1:3])
    sums = lax.reduce_window(total, 0.0, lax.add, (1, *sides, 1), (1, 1, 1, 1), "VALID")
    return (sums / (sides[0] * sides[1])).astype(x.dtype)


def classifier_init(config: MobileNetV2Config) -> nn.initializers.Initializer:
    """Returns how a classifier's kernel starts: normal, by its own range or that of all others."""
    own = config.classifier_initializer_range
    return nn.initializers.normal(config.initializer_range if own is None else own)
