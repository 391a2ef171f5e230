"""Losses as masked sums, so that the caller divides once, over all devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def upsample_logits(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes (N, h, w, C) to (N, *size, C) bilinearly with half-pixel centres, as the reference does."""
    batch, _, _, classes = logits.shape
    return jax.image.resize(logits, (batch, *size, classes), "bilinear", antialias=False)


def segmentation_cross_entropy_sums(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy at the size of the labels.

    Args:
      logits: (N, h, w, C), any resolution.
      labels: (N, H, W), integers in [0, C) or ``ignore_label``.
      ignore_label: pixels with this label do not count.

    Returns:
      Two scalars, float32 (float64 for float64 logits): the sum over the pixels that count, in nats, and their number.
    """
    logits = upsample_logits(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels.shape[1:])
    valid = labels != ignore_label
    # A one-hot product rather than a gather: the gather's gradient is a scatter, slow on every platform.
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * truth, axis=-1)
    return jnp.sum(jnp.where(valid, losses, 0.0)), jnp.sum(valid, dtype=logits.dtype)
