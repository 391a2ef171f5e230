"""Bilinear resizing, by either convention of where the corners go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_mnv2.models.numerics import at_least_float32


def resize_bilinear(x: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """Resizes (N, h, w, C) to (N, *size, C), of the dtype of ``x``, without smoothing where it shrinks.

    With ``align_corners`` the centres of the outermost pixels keep their place, as in TF DeepLab and PyTorch's option
    of that name; otherwise their outer edges, as by default in PyTorch.
    """
    batch, *sides, channels = x.shape
    if tuple(sides) == tuple(size):
        return x
    if not align_corners:
        return jax.image.resize(x, (batch, *size, channels), "bilinear", antialias=False)
    rows, columns = (_weights(*pair) for pair in zip(sides, size, strict=True))
    resized = x.astype(at_least_float32(x.dtype))
    for product, weights in (("oh,nhwc->nowc", rows), ("ow,nhwc->nhoc", columns)):
        resized = jnp.einsum(product, weights.astype(resized.dtype), resized, precision=lax.Precision.HIGHEST)
    return resized.astype(x.dtype)


def _weights(old: int, new: int) -> np.ndarray | jax.Array:
    """(new, old): what each pixel takes of those along one axis; the first alone where ``new`` is 1."""
    xp = np if isinstance(old, int) and isinstance(new, int) else jnp  # JAX's where a size is symbolic
    first, last = xp.arange(old), xp.arange(new)
    position = last * (xp.asarray(old - 1) / xp.maximum(xp.asarray(new - 1), 1))
    return xp.maximum(0.0, 1.0 - xp.abs(position[:, None] - first[None]))
