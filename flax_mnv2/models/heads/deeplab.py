"""DeepLab's head: DeepLabV3 and V3+ of every library, as ``config.deeplab`` says."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE, DeepLabSpec
from flax_mnv2.models.layers import ChannelDropout, ConvNormAct, ModuleDef, classifier_init, window_means
from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops.resize import resize_bilinear
from flax_mnv2.models.quantization.rounding import Quantizer, fake_quantize, quantized

DEEPLAB_EPSILON = 1e-5  # of batch norm in the head, in TF DeepLab and in PyTorch; the backbone has its own


class SeparableConv(nn.Module):
    """A 3×3 depthwise convolution and a 1×1 one, with batch norm and activation after the second or after both."""

    features: int
    layer: ModuleDef  # a partial of ConvNormAct
    conv: ModuleDef
    inner_norm: bool
    quantizer: Quantizer | None = None
    dilation: int = 1
    quantize_output: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, c) → (N, H, W, features)."""
        first = self.layer if self.inner_norm else self.conv
        window = {"kernel_size": 3, "dilation": self.dilation, "depthwise": True}
        x = first(features=x.shape[-1], **window, name="conv_3x3")(x)
        x = x if self.inner_norm else quantized(x, self.quantizer, "conv_3x3_output")
        return self.layer(self.features, quantize_output=self.quantize_output, name="reduce_1x1")(x)


class DeepLabHead(nn.Module):
    """Branches joined and projected; where there is a decoder, joined with low-level features; classified.

    Layers: ``conv_aspp``, ``conv_atrous_1`` and on, ``conv_pool``, ``conv_projection``, ``conv_refine_0`` and on,
    ``conv_low_level``, ``conv_decoder_0`` and on, ``classifier``. Those of Hugging Face's DeepLab, which it calls V3+,
    are ``conv_pool``, ``conv_aspp``, ``conv_projection`` and ``classifier``.
    """

    config: MobileNetV2Config
    conv: ModuleDef
    norm: ModuleDef | None
    quantizer: Quantizer | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, low_level: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Features (N, h, w, c), and low-level ones (N, h', w', c') → logits (N, h', w', num_labels), float32."""
        spec = self.config.deeplab or HUGGING_FACE
        norm = self._norm()
        act = nn.relu6 if spec.bounded_activation else nn.relu
        layer = functools.partial(ConvNormAct, conv=self.conv, norm=norm, act=act, quantizer=self.quantizer)
        dropout = ChannelDropout(self.config.classifier_dropout_prob, self.axis_name)
        wide = self._three_by_three(spec, layer, separable=spec.separable_decoder)
        x = layer(spec.channels, kernel_size=spec.projection_kernel, name="conv_projection")(
            self._branches(spec, layer, x)
        )
        x = dropout(x, deterministic=not train or spec.dropout_after != "projection")
        for index in range(spec.projection_convs):
            x = wide(name=f"conv_refine_{index}")(x)
        if low_level is not None:
            low_level = layer(spec.low_level_channels, quantize_output=False, name="conv_low_level")(low_level)
            x = resize_bilinear(x, low_level.shape[1:3], align_corners=spec.align_corners)
            x, low_level = fake_quantize(self.quantizer, "decoder_input")(x, low_level)
            x = jnp.concatenate([low_level, x] if spec.low_level_first else [x, low_level], axis=-1)
        for index in range(spec.decoder_convs):
            x = wide(name=f"conv_decoder_{index}")(x)
        x = dropout(x, deterministic=not train or spec.dropout_after != "decoder")
        conv = functools.partial(self.conv, kernel_init=classifier_init(self.config))
        logits = layer(self.config.num_labels, conv=conv, norm=None, act=None, name="classifier")(x)
        return logits.astype(at_least_float32(logits.dtype))

    def _norm(self) -> ModuleDef | None:
        if self.norm is None:
            return None
        momentum = self.config.head_batch_norm_momentum
        momentum = self.config.batch_norm_momentum if momentum is None else momentum
        return functools.partial(self.norm, epsilon=DEEPLAB_EPSILON, momentum=momentum)

    def _three_by_three(
        self, spec: DeepLabSpec, layer: ModuleDef, *, separable: bool, quantize_output: bool = True
    ) -> ModuleDef:
        options = {"quantize_output": quantize_output}
        if separable:
            parts = (spec.channels, layer, self.conv, spec.inner_norm, self.quantizer)
            return functools.partial(SeparableConv, *parts, **options)
        return functools.partial(layer, spec.channels, kernel_size=3, **options)

    def _branches(self, spec: DeepLabSpec, layer: ModuleDef, x: jax.Array) -> jax.Array:
        """(N, h, w, c) → (N, h, w, branches · channels)."""
        output_stride = self.config.layer_plan.blocks[-1].output_stride
        alone = functools.partial(layer, quantize_output=False)  # they are rounded together, to share a scale
        pooled = []
        if spec.pooling != "none":
            window = spec.pooling_size and tuple((side - 1) // output_stride + 1 for side in spec.pooling_size)
            means = quantized(window_means(x, window, spec.pooling_stride), self.quantizer, "pool")
            means = alone(spec.channels, act=nn.relu, name="conv_pool")(means)
            pooled = [_spread(means, x.shape[1:3], spec)]
        wide = self._three_by_three(spec, layer, separable=spec.separable_branches, quantize_output=False)
        branches = [alone(spec.channels, name="conv_aspp")(x)]
        for index, rate in enumerate(spec.rates_at(output_stride), start=1):
            branches.append(wide(dilation=rate, name=f"conv_atrous_{index}")(x))
        branches = pooled + branches if spec.pooling == "first" else branches + pooled
        return jnp.concatenate(fake_quantize(self.quantizer, "branches")(*branches), axis=-1)


def _spread(pooled: jax.Array, size: tuple[int, int], spec: DeepLabSpec) -> jax.Array:
    """Pooled features at the size of the others; resizing a 1×1 map is a broadcast, by either convention."""
    if pooled.shape[1:3] == (1, 1):
        return jnp.broadcast_to(pooled, (pooled.shape[0], *size, pooled.shape[-1]))
    return resize_bilinear(pooled, size, align_corners=spec.align_corners)
