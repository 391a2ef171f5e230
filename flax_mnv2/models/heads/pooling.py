"""Average pooling before the classifier: over the whole map, or over the original's fixed window."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.models.numerics import at_least_float32


def average_pool(x: jax.Array, window: int | None) -> jax.Array:
    """Means over the map, or over every place of a window in it.

    Args:
      x: (N, h, w, c).
      window: None for the whole map; or the side of a square window that moves by one pixel and stays inside the
        map, shrunk to the map's sides where it is larger (as TF-slim does).

    Returns:
      (N, c), or with a window (N, h - window + 1, w - window + 1, c), of the dtype of ``x``.
    """
    total = x.astype(at_least_float32(x.dtype))
    if window is None:
        return jnp.mean(total, axis=(1, 2)).astype(x.dtype)
    sides = tuple(min(window, side) for side in x.shape[1:3])
    sums = lax.reduce_window(total, 0.0, lax.add, (1, *sides, 1), (1, 1, 1, 1), "VALID")
    return (sums / (sides[0] * sides[1])).astype(x.dtype)
