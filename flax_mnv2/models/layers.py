"""Building blocks: padding rules, convolutions, convolution + normalisation + activation, dropout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.config import BlockSpec, MobileNetV2Config, StemSpec
from flax_mnv2.models.depthwise import Padding, depthwise_conv

Dtype = Any

# One entry for each of flax_mnv2.config.ACTIVATIONS.
ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu6": nn.relu6,
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
    """((top, bottom), (left, right)) so that the output has ceil(size / stride) rows and columns.

    TensorFlow's rule depends on the input size and puts the odd zero last; PyTorch's models pad both sides
    alike. They differ at stride 2 and even sizes. The window of the TensorFlow rule is measured undilated and
    scaled afterwards, as in the reference; it matters at stride 1 only, where both give the same.
    """
    if not tf_padding:
        side = (kernel - 1) // 2 * dilation
        return (side, side), (side, side)

    def pad(size: int) -> tuple[int, int]:
        total = max(kernel - (size % stride or stride), 0)
        return total // 2 * dilation, (total - total // 2) * dilation

    return pad(height), pad(width)


class Convolution(nn.Module):
    """A convolution with the reference's padding.

    Parameters: ``kernel`` (k, k, in, out), or (k, k, 1, channels) if depthwise; ``bias`` (out,) if asked for.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      stride: step between outputs.
      dilation: step between kernel taps.
      depthwise: one kernel per channel; then ``features`` equals the input channels.
      use_bias: add a bias.
      tf_padding: TensorFlow's rule or PyTorch's.
      dtype: type of the computation; parameters stay float32.
      kernel_init: initialiser of the kernel.
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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, in) → (N, ceil(H / stride), ceil(W / stride), features)."""
        size = self.kernel_size
        shape = (size, size, 1 if self.depthwise else x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        padding = same_padding(
            *x.shape[1:3], kernel=size, stride=self.stride, dilation=self.dilation, tf_padding=self.tf_padding
        )
        if self.depthwise:
            x = depthwise_conv(x, kernel, self.stride, padding, self.dilation)
        elif size == 1 and self.stride == 1:
            # A matrix product is 2 to 6 times faster on CPU than a 1×1 convolution, and the same elsewhere.
            x = lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=padding,
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and activation, named as in the reference's checkpoints.

    Attributes:
      features: output channels.
      conv: partial of ``Convolution`` with what the whole network shares.
      norm: partial of ``nn.BatchNorm`` with what the whole network shares; None for a bias in its place.
      act: activation, or None.
      kernel_size: side of the kernel.
      stride: step between outputs.
      dilation: step between kernel taps.
      depthwise: one kernel per channel.
    """

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None
    act: Callable[[jax.Array], jax.Array] | None
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, in) → (N, H', W', features)."""
        x = self.conv(
            features=self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            depthwise=self.depthwise,
            use_bias=self.norm is None,
            name="convolution",
        )(x)
        if self.norm is not None:
            x = self.norm(name="normalization")(x)
        return x if self.act is None else self.act(x)


Layer = Callable[..., nn.Module]  # partial of ConvNormAct, bound once at the root of a model


class Stem(nn.Module):
    """The stride-2 convolution and the first, unexpanded block.

    Attributes:
      spec: its row of the layer plan.
      layer: partial of ``ConvNormAct``.
    """

    spec: StemSpec
    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, image channels) → (N, ⌈H/2⌉, ⌈W/2⌉, out_channels)."""
        width = self.spec.channels
        x = self.layer(width, kernel_size=3, stride=2, name="first_conv")(x)
        if self.spec.expand:
            x = self.layer(width, name="expand_1x1")(x)
        y = self.layer(width, kernel_size=3, depthwise=True, name="conv_3x3")(x)
        y = self.layer(self.spec.out_channels, act=None, name="reduce_1x1")(y)
        return x + y if self.spec.residual else y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection, and the shortcut where shapes allow.

    Attributes:
      spec: its row of the layer plan.
      layer: partial of ``ConvNormAct``.
      stop_at: ``"expansion"`` or ``"depthwise"`` to compute no more than that; None for the whole block.
    """

    spec: BlockSpec
    layer: Layer
    stop_at: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """(N, H, W, in_channels) → what was computed of

        ``expansion`` (N, H, W, expanded_channels), ``depthwise`` (N, ⌈H/stride⌉, ⌈W/stride⌉, expanded_channels) and
        ``output`` (N, ⌈H/stride⌉, ⌈W/stride⌉, out_channels).
        """
        spec = self.spec
        outputs = {"expansion": self.layer(spec.expanded_channels, name="expand_1x1")(x)}
        if self.stop_at == "expansion":
            return outputs
        outputs["depthwise"] = self.layer(
            spec.expanded_channels,
            kernel_size=3,
            stride=spec.stride,
            dilation=spec.dilation,
            depthwise=True,
            name="conv_3x3",
        )(outputs["expansion"])
        if self.stop_at == "depthwise":
            return outputs
        y = self.layer(spec.out_channels, act=None, name="reduce_1x1")(outputs["depthwise"])
        outputs["output"] = x + y if spec.residual else y
        return outputs


class ChannelDropout(nn.Module):
    """Drops whole channels of each example, like PyTorch's ``Dropout2d``, which the reference's head uses.

    Each example draws from its own key, folded from its position in the global batch: one device or many,
    ``jit`` or ``pmap``, drop the same channels.

    Attributes:
      rate: probability of dropping a channel.
      axis_name: mapped axis over which the batch is split, under ``pmap``.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """(N, …, C) → the same shape; survivors are scaled by 1 / (1 - rate)."""
        if deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:
            return jnp.zeros_like(x)
        batch, channels = x.shape[0], x.shape[-1]
        position = jnp.arange(batch)
        if self.axis_name is not None:
            position += lax.axis_index(self.axis_name) * batch
        keys = jax.vmap(functools.partial(jax.random.fold_in, self.make_rng("dropout")))(position)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, (channels,)))(keys)
        keep = keep.reshape(batch, *(1,) * (x.ndim - 2), channels)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


def make_layer(
    config: MobileNetV2Config, *, train: bool, dtype: Dtype, axis_name: str | None, freeze_batch_norm: bool
) -> Layer:
    """Binds what every ``ConvNormAct`` of a network shares.

    Batch normalisation computes its statistics in float32; with ``freeze_batch_norm`` it uses the running
    ones even while training, and its scale and bias still learn (as TF DeepLab's ``fine_tune_batch_norm=False``).
    """
    conv = functools.partial(
        Convolution,
        tf_padding=config.tf_padding,
        dtype=dtype,
        kernel_init=nn.initializers.normal(config.initializer_range),
    )
    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not train or freeze_batch_norm,
        momentum=config.batch_norm_momentum,
        epsilon=config.layer_norm_eps,
        dtype=dtype,
        axis_name=axis_name,
    )
    return functools.partial(ConvNormAct, conv=conv, norm=norm, act=ACTIVATION_FUNCTIONS[config.hidden_act])
