"""DeepLabV3 as published for MobileNetV2: image pooling and one 1×1 branch."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.layer_plan import DEEPLAB_CHANNELS
from flax_mnv2.models.layers import ChannelDropout, ConvNormAct, ModuleDef, classifier_init
from flax_mnv2.models.numerics import at_least_float32

DEEPLAB_EPSILON = 1e-5  # TF DeepLab's batch norm in the head; the backbone has 1e-3


class DeepLabV3Head(nn.Module):
    """Image pooling and one 1×1 branch, joined, projected and classified.

    This is what Hugging Face calls DeepLabV3Plus; it is DeepLabV3 without atrous branches and without a decoder.
    """

    config: MobileNetV2Config
    conv: ModuleDef
    norm: ModuleDef | None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (N, h, w, c) → logits (N, h, w, num_labels), float32."""
        norm = self.norm
        if norm is not None:
            momentum = self.config.head_batch_norm_momentum
            momentum = self.config.batch_norm_momentum if momentum is None else momentum
            norm = functools.partial(norm, epsilon=DEEPLAB_EPSILON, momentum=momentum)
        layer = functools.partial(ConvNormAct, conv=self.conv, norm=norm, act=nn.relu)
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=at_least_float32(x.dtype)).astype(x.dtype)
        pooled = layer(DEEPLAB_CHANNELS, name="conv_pool")(pooled)
        aspp = layer(DEEPLAB_CHANNELS, name="conv_aspp")(x)
        # Resizing a 1×1 map bilinearly is a broadcast. The pooled branch comes first, as in the checkpoints.
        x = jnp.concatenate([jnp.broadcast_to(pooled, aspp.shape), aspp], axis=-1)
        x = layer(DEEPLAB_CHANNELS, name="conv_projection")(x)
        x = ChannelDropout(self.config.classifier_dropout_prob, self.axis_name)(x, deterministic=not train)
        conv = functools.partial(self.conv, kernel_init=classifier_init(self.config))
        logits = layer(self.config.num_labels, conv=conv, norm=None, act=None, name="classifier")(x)
        return logits.astype(at_least_float32(logits.dtype))
