"""Heads that stand on a backbone: image classification and DeepLabV3."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_mnv2.config import DEEPLAB_CHANNELS, MobileNetV2Config
from flax_mnv2.models.layers import ChannelDropout, Dtype, Layer
from flax_mnv2.numerics import at_least_float32

DEEPLAB_EPSILON = 1e-5  # TF DeepLab's batch norm in the head; the backbone has 1e-3


def _classifier_init(config: MobileNetV2Config) -> nn.initializers.Initializer:
    own = config.classifier_initializer_range
    return nn.initializers.normal(config.initializer_range if own is None else own)


class DeepLabV3Head(nn.Module):
    """Image pooling and one 1×1 branch, joined, projected and classified.

    This is what the reference calls DeepLabV3Plus; it is DeepLabV3 without atrous branches and without a
    decoder, the form published for MobileNetV2.

    Attributes:
      config: the architecture.
      layer: partial of ``ConvNormAct``, as for the backbone.
      axis_name: mapped axis over which the batch is split, under ``pmap``.
    """

    config: MobileNetV2Config
    layer: Layer
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (N, h, w, c) → logits (N, h, w, num_labels), float32."""
        momentum = self.config.head_batch_norm_momentum
        norm = self.layer.keywords["norm"]
        if norm is not None:
            norm = functools.partial(
                norm,
                epsilon=DEEPLAB_EPSILON,
                momentum=self.config.batch_norm_momentum if momentum is None else momentum,
            )
        layer = functools.partial(self.layer, norm=norm, act=nn.relu)
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=at_least_float32(x.dtype)).astype(x.dtype)
        pooled = layer(DEEPLAB_CHANNELS, name="conv_pool")(pooled)
        aspp = layer(DEEPLAB_CHANNELS, name="conv_aspp")(x)
        # Resizing a 1×1 map bilinearly is a broadcast. The pooled branch comes first, as in the checkpoints.
        x = jnp.concatenate([jnp.broadcast_to(pooled, aspp.shape), aspp], axis=-1)
        x = layer(DEEPLAB_CHANNELS, name="conv_projection")(x)
        x = ChannelDropout(self.config.classifier_dropout_prob, self.axis_name)(x, deterministic=not train)
        conv = functools.partial(self.layer.keywords["conv"], kernel_init=_classifier_init(self.config))
        logits = layer(self.config.num_labels, conv=conv, norm=None, act=None, name="classifier")(x)
        return logits.astype(at_least_float32(logits.dtype))


class ClassificationHead(nn.Module):
    """Dropout and a linear layer.

    Parameters: ``kernel`` (features, num_labels) and ``bias`` (num_labels,).

    Attributes:
      config: the architecture; with ``num_labels=0`` the features pass through, as in the reference.
      dtype: type of the computation.
      axis_name: mapped axis over which the batch is split, under ``pmap``.
    """

    config: MobileNetV2Config
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Pooled features (N, …, c) → logits (N, …, num_labels), float32."""
        x = ChannelDropout(self.config.classifier_dropout_prob, self.axis_name)(x, deterministic=not train)
        if self.config.num_labels == 0:
            return x.astype(at_least_float32(x.dtype))
        shape = (x.shape[-1], self.config.num_labels)
        kernel = self.param("kernel", _classifier_init(self.config), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        logits = x.astype(self.dtype) @ kernel.astype(self.dtype)
        logits += jnp.broadcast_to(bias.astype(self.dtype), logits.shape)
        return logits.astype(at_least_float32(logits.dtype))
