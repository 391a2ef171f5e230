"""Layers: padding rules, convolution, batch normalisation, the three in one, dropout, pooling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops.activations import Activation
from flax_mnv2.models.ops.depthwise import depthwise_conv
from flax_mnv2.models.ops.platforms import Implementation
from flax_mnv2.models.ops.pointwise import Moments, affine_act, moments, pointwise
from flax_mnv2.models.ops.shifts import Padding, for_xla
from flax_mnv2.models.quantization.rounding import FakeQuantize, Quantizer

Dtype = Any
ModuleDef = Callable[..., nn.Module]  # a partial of a module, bound once at the root of a model


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
        total = max(kernel - (size - 1) % stride - 1, 0)  # without a question about a size, which may be symbolic
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
    pad: bool = True  # otherwise the output shrinks by what the kernel covers
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    implementation: Implementation = "auto"
    quantizer: Quantizer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, multiplier: jax.Array | None = None) -> jax.Array:
        """(N, H, W, in) → (N, ceil(H / stride), ceil(W / stride), features), of type ``dtype``.

        ``multiplier`` (features,) is what the kernel is deployed with, for its quantisation alone.
        """
        kernel = self.param("kernel", self.kernel_init, self.kernel_shape(x.shape[-1]), jnp.float32)
        if self.quantizer is not None:
            kernel = self.quantizer.kernel(kernel, multiplier)
        y = self.convolve(x, kernel)
        if not self.use_bias:
            return y
        return affine_act(y, None, self.param("bias", self.bias_init, (self.features,), jnp.float32), None)

    @nn.nowrap
    def kernel_shape(self, in_channels: int) -> tuple[int, ...]:
        """Returns the shape of ``kernel`` for an input of this many channels."""
        return (self.kernel_size, self.kernel_size, 1 if self.depthwise else in_channels, self.features)

    @nn.nowrap
    def window(self, height: int, width: int) -> dict[str, Any]:
        """Returns stride, padding and dilation for an input of this size, as keyword arguments."""
        if not self.pad:
            return {"stride": self.stride, "padding": ((0, 0), (0, 0)), "dilation": self.dilation}
        padding = same_padding(
            height,
            width,
            kernel=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            tf_padding=self.tf_padding,
        )
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation}

    @nn.nowrap
    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Computes the layer with this kernel and without its bias; shapes as for ``__call__``."""
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
            padding=for_xla(window["padding"]),
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class BatchNorm(nn.Module):
    """Variables and rules of ``nn.BatchNorm``, with statistics that keep more of their precision.

    Parameters: ``scale`` and ``bias`` (features,). Statistics: ``mean`` and ``var`` (features,), biased, float32.
    """

    use_running_average: bool  # and leave the running statistics as they are
    momentum: float  # fraction of the old running statistics that is kept per step
    epsilon: float
    axis_name: str | None = None  # mapped axis over which statistics are shared

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, features) → the same shape and dtype, computed in float32 or better."""
        shape = x.shape[-1:]
        self.param("scale", nn.initializers.ones, shape, jnp.float32)
        self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        return affine_act(x, *self.affine(functools.partial(moments, x)), None)

    @nn.nowrap
    def running_multiplier(self) -> jax.Array | None:
        """Returns what ``x`` is multiplied by with the running statistics, (features,); None before there are any."""
        if not self.has_variable("batch_stats", "var"):
            return None
        return self.get_variable("params", "scale") * lax.rsqrt(self.get_variable("batch_stats", "var") + self.epsilon)

    @nn.nowrap
    def affine(self, moments: Callable[[jax.Array], Moments]) -> tuple[jax.Array, jax.Array]:
        """(multiplier, offset), each (features,): the layer is ``x * multiplier + offset``.

        ``moments`` takes a shift (features,) and gives the mean and the mean square of the batch less the shift, each
        (features,), float32 or better; it is called only where the statistics of the batch are wanted. The shift is the
        running mean: near that of the batch, so that little is lost where the square of the mean is subtracted.
        """
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        running = {name: self.get_variable("batch_stats", name) for name in ("mean", "var")}
        mean, var = running["mean"], running["var"]
        if not self.use_running_average:
            shift = lax.stop_gradient(mean)
            mean, square = moments(shift)
            if self.axis_name is not None and not self.is_initializing():
                mean, square = lax.pmean((mean, square), self.axis_name)
            var = jnp.maximum(square - lax.square(mean), 0.0)
            mean = mean + shift
            if not self.is_initializing():
                for name, batch in (("mean", mean), ("var", var)):
                    updated = self.momentum * running[name] + (1.0 - self.momentum) * batch
                    self.put_variable("batch_stats", name, updated)
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        return multiplier, bias - mean * multiplier


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and activation, named as in Hugging Face's checkpoints.

    ``conv`` and ``norm`` are partials of ``Convolution`` and ``BatchNorm`` with what the whole network shares; without
    ``norm`` there is a bias in its place. A quantised layer has the range of its output under ``output``, unless
    ``quantize_output`` is off, because what follows rounds it.
    """

    features: int
    conv: ModuleDef
    norm: ModuleDef | None
    act: Activation | None
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    pad: bool = True
    quantizer: Quantizer | None = None
    quantize_output: bool = True

    def setup(self):
        """Makes the layers, which others may read."""
        self.convolution = self.conv(
            features=self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            depthwise=self.depthwise,
            pad=self.pad,
            use_bias=self.norm is None,
        )
        self.normalization = None if self.norm is None else self.norm()
        if self.quantizer is not None and self.quantize_output:
            self.output = FakeQuantize(self.quantizer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, in) → (N, H', W', features)."""
        if self.quantizer is None or self.normalization is None:
            y = self.convolution(x)
        else:
            y = self.convolution(x, self.normalization.running_multiplier())
        if self.normalization is not None:
            y = self.normalization(y)
        y = y if self.act is None else self.act(y)
        return self.output(y)[0] if self.quantizer is not None and self.quantize_output else y


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


def pool(x: jax.Array, kind: str = "avg", window: int | None = None) -> jax.Array:
    """(N, h, w, c) over the map, (N, c), or over every place of a window in it, of the dtype of ``x``.

    ``kind`` is one of ``flax_mnv2.config.GLOBAL_POOLS``; ``"catavgmax"`` gives 2c channels. A window is square, moves
    by one pixel and stays inside the map, shrunk to the map's sides where it is larger (as TF-slim does):
    (N, h - window + 1, w - window + 1, c).
    """
    wide = x.astype(at_least_float32(x.dtype))
    if kind == "max":
        return _highest(wide, window).astype(x.dtype)
    mean = jnp.mean(wide, axis=(1, 2)) if window is None else window_means(wide, (window, window))
    if kind == "avgmax":
        mean = 0.5 * (mean + _highest(wide, window))
    elif kind == "catavgmax":
        mean = jnp.concatenate([mean, _highest(wide, window)], axis=-1)
    return mean.astype(x.dtype)


def window_means(x: jax.Array, window: tuple[int, int] | None, stride: tuple[int, int] = (1, 1)) -> jax.Array:
    """Means of (N, h, w, c) over every place of a window inside the map, or over all of it, of the dtype of ``x``.

    (N, ⌊(h - height) / down⌋ + 1, ⌊(w - width) / right⌋ + 1, c), or (N, 1, 1, c); a window larger than the map is
    shrunk to its sides.
    """
    wide = x.astype(at_least_float32(x.dtype))
    if window is None:
        return jnp.mean(wide, axis=(1, 2), keepdims=True).astype(x.dtype)
    sides = _sides(x, window)
    sums = lax.reduce_window(wide, 0.0, lax.add, (1, *sides, 1), (1, *stride, 1), "VALID")
    return (sums / (sides[0] * sides[1])).astype(x.dtype)


def _highest(x: jax.Array, window: int | None) -> jax.Array:
    if window is None:
        return jnp.max(x, axis=(1, 2))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *_sides(x, (window, window)), 1), (1, 1, 1, 1), "VALID")


def _sides(x: jax.Array, window: tuple[int, int]) -> tuple[int, ...]:
    return tuple(min(side, limit) for side, limit in zip(window, x.shape[1:3], strict=True))


def classifier_init(config: MobileNetV2Config) -> nn.initializers.Initializer:
    """Returns how a classifier's kernel starts: normal, by its own range or that of all others."""
    own = config.classifier_initializer_range
    return nn.initializers.normal(config.initializer_range if own is None else own)
