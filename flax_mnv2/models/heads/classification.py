"""Image classification: dropout and a linear layer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.models.layers import ChannelDropout, Dtype, classifier_init
from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.quantization.rounding import Quantizer, quantized


class ClassificationHead(nn.Module):
    """Dropout and a linear layer; with ``num_labels=0`` the features pass through, as in Hugging Face's.

    Parameters: ``kernel`` (features, num_labels) and ``bias`` (num_labels,).
    """

    config: MobileNetV2Config
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    quantizer: Quantizer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Pooled features (N, …, c) → logits (N, …, num_labels), float32."""
        x = ChannelDropout(self.config.classifier_dropout_prob, self.axis_name)(x, deterministic=not train)
        if self.config.num_labels == 0:
            return x.astype(at_least_float32(x.dtype))
        shape = (x.shape[-1], self.config.num_labels)
        kernel = self.param("kernel", classifier_init(self.config), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        if self.quantizer is not None:
            kernel = self.quantizer.kernel(kernel)
        logits = x.astype(self.dtype) @ kernel.astype(self.dtype)
        logits += jnp.broadcast_to(bias.astype(self.dtype), logits.shape)
        return quantized(logits.astype(at_least_float32(logits.dtype)), self.quantizer, "output")
